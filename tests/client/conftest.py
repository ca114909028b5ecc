"""What the client's tests share."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for stub_server.py, which is not a test
