"""The program of a worker: serves at the end of the supervisor's pipe that the environment names."""

import os
import sys
from multiprocessing.connection import Connection

from digits_server.config import Config
from digits_server.rpc import fronts
from digits_server.workers.process import PIPE


def main() -> int:
    """Serve; return the exit status. Nothing that serves is imported yet: that is the front's affair."""
    file = int(os.environ[PIPE])
    with Connection(os.dup(file)) as pipe:
        config: Config = pipe.recv()
    return fronts.run(config, "digits_server.workers.worker:serve", config, file)


if __name__ == "__main__":
    sys.exit(main())
