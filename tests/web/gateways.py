"""A real `digits-web` process, and what its answers are held against."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass

from conftest import ROOT
from jsonschema import Draft202012Validator

OPENAPI = json.loads((ROOT / "web/digits_web/openapi.json").read_text())


@dataclass
class Gateway:
    """A running `digits-web`."""

    process: subprocess.Popen
    url: str
    ready: str

    def stop(self):
        """Send SIGTERM and return the exit status."""
        self.process.terminate()
        return self.process.wait(30)


def start_gateway(*flags):
    """Start a gateway on a free port and return when it says that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "digits_web", "--port=0", *flags], stdout=subprocess.PIPE, text=True
    )
    with process.stdout as output:
        line = output.readline()
    ready = re.search(r"ready: (http://\S+), server", line)
    assert ready, line
    return Gateway(process, ready[1], line)


def conforms(body, name):
    """Assert that a body is what the description promises under that name; return it."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": OPENAPI["components"]}
    Draft202012Validator(schema).validate(body)
    return body
