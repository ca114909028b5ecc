"""The container's health check: exit 0 if the server says that it is ready."""  # noqa: INP001 - a script, not a package

import os
import sys
from http.client import HTTPConnection, HTTPException

port = int(os.environ.get("DIGITS_SERVER_METRICS_PORT", "9464"))
try:
    connection = HTTPConnection("127.0.0.1", port, timeout=2)
    connection.request("GET", "/readyz")
    sys.exit(connection.getresponse().status != 200)
except (OSError, HTTPException) as error:
    sys.exit(f"127.0.0.1:{port} does not answer: {error}")
