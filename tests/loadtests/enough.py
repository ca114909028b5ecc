"""Ends a run of Locust once each of its workloads has been called often: when that is depends on the machine."""

import gevent
from locust import events
from locust.runners import WorkerRunner

ENOUGH = 30
"""Calls of each workload. With those of 64 images, so many that a right model has no wrong share by chance."""


@events.test_start.add_listener
def end_when_enough(environment, **_):
    """Watch what is counted, unless a shape decides when it is over."""

    def wait():
        wanted = {user.workload for user in environment.user_classes}
        while not wanted <= {it.name for it in environment.stats.entries.values() if it.num_requests >= ENOUGH}:
            gevent.sleep(0.1)
        environment.runner.quit()

    if not isinstance(environment.runner, WorkerRunner) and not environment.shape_class:
        gevent.spawn(wait)
