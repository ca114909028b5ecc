"""What the client's tests share."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # for stub_server.py; last, so that `conftest` stays the outer one
