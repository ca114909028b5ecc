"""What is measured, summed over workers, and shown over HTTP. The only room that knows prometheus_client."""

from prometheus_client import disable_created_metrics

disable_created_metrics()  # a second series beside each, of when it was made: Prometheus sees that by itself
