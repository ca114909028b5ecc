"""What there is to count and to time: names, labels and buckets of all metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Family:
    """Numbers of one name, told apart by labels."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    text: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    """Of a histogram: the buckets' upper bounds, without infinity."""
    across: Literal["sum", "max", "min"] = "sum"
    """How the numbers of several processes become one."""
    has_exemplars: bool = False
    """Of a histogram: whether each bucket keeps the trace id of its last observation."""


SECONDS = (
    *(0.00005, 0.0001, 0.0002, 0.0003, 0.0005, 0.001, 0.002, 0.003, 0.005),
    *(0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
)
"""Bucket bounds: a run takes tens of microseconds, a call under load a few milliseconds."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
CONFIDENCES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)
INKS = (0.02, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.11, 0.12, 0.13, 0.14, 0.15, 0.16, 0.18, 0.2, 0.25, 0.3, 0.5)
"""Bucket bounds of mean ink: MNIST's digits have 0.03 to 0.4, half of them 0.1 to 0.15."""

_RPC, _MODEL, _VERSION = ("grpc_type", "grpc_service", "grpc_method"), ("model",), ("model", "version")
HANDLED = Family("counter", "grpc_server_handled", "RPCs completed.", (*_RPC, "grpc_code"))
HANDLING = Family(
    "histogram", "grpc_server_handling_seconds", "Time in the RPC's handler.", _RPC, SECONDS, has_exemplars=True
)
REJECTED = Family("counter", "digits_rejected", "Requests refused on arrival.", ("reason",))
SECRETS = Family("counter", "digits_secret_loads", "New certificates, tokens.", ("secret", "result"))
HANDSHAKES = Family("counter", "digits_tls_handshakes", "TLS handshakes begun.")
EXPIRY = Family(
    "gauge",
    "digits_certificate_expiry_timestamp_seconds",
    "When the server's certificate expires, since 1970; 0: there is none.",
    across="min",
)
QUEUE = Family("histogram", "digits_queue_seconds", "Wait of a request for its batch.", _MODEL, SECONDS)
INFERENCE = Family("histogram", "digits_inference_seconds", "Time of a run of the model.", _MODEL, SECONDS)
SIZE = Family("histogram", "digits_batch_size", "Images in a run.", _MODEL, SIZES)
BATCHES = Family("counter", "digits_batches", "Runs, by what released them.", (*_MODEL, "release"))
UNWANTED = Family("counter", "digits_unwanted", "Images that ran for callers who had left by the end.", _MODEL)
PREDICTIONS = Family("counter", "digits_predictions", "Images, by answer.", (*_MODEL, "digit"))
CONFIDENCE = Family("histogram", "digits_confidence", "Probability of the answer.", _MODEL, CONFIDENCES)
INK = Family("histogram", "digits_input_ink", "Mean ink of an image, 0 to 1.", _MODEL, INKS)
REFERENCE = Family(
    "gauge",
    "digits_reference_share",
    "Share of the training images, by feature (ink: le of digits_input_ink, class: digit).",
    (*_MODEL, "feature", "bucket"),
    across="max",
)
DEPTH = Family("gauge", "digits_queue_depth", "Images waiting.", _VERSION)
INFO = Family("gauge", "digits_model_info", "1 for a version that serves.", _VERSION, across="max")
GAIN = Family(
    "gauge",
    "digits_batching_gain",
    "Images/s in the best batch over images/s alone, measured when the model was loaded.",
    _VERSION,
    across="max",
)
REFUSED = Family("gauge", "digits_models_refused", "Versions on disk that can't be served.", across="max")
UNREADABLE = Family("gauge", "digits_models_unreadable", "1 while the models folder can't be read.", across="max")
READY = Family("gauge", "digits_workers_ready", "Processes that serve.")
RESTARTS = Family("counter", "digits_worker_restarts", "Workers replaced, by reason.", ("reason",))
FAMILIES = tuple(family for family in list(vars().values()) if isinstance(family, Family))
"""All that boards hold, in the order of the page."""
DRIFT = Family(
    "gauge",
    "digits_input_drift",
    "Population stability index of the images of late against the training images; above 0.25 they differ.",
    (*_MODEL, "feature"),
)
"""Worked out of them."""
