"""What users install."""

import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, check=True, cwd=ROOT / "client", capture_output=True, timeout=100)
    (wheel,) = folder.glob("*.whl")
    return zipfile.ZipFile(wheel)


def test_wheel_is_small_and_complete(wheel):
    """The wheel has the code, the mark that it is typed and the command, and is no larger than 60 KB."""
    names = wheel.namelist()
    assert {"digits_client/__init__.py", "digits_client/testing.py", "digits_client/py.typed"} <= set(names)
    assert sum(info.compress_size for info in wheel.infolist()) < 60_000
    assert not [name for name in names if "test_" in name]
    (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
    assert "digits = digits_client.__main__:main" in wheel.read(entry_points).decode()


def test_wheel_works_alone(wheel, tmp_path):
    """Unpacked somewhere else, it is imported from there and needs nothing of this repository but the stubs."""
    wheel.extractall(tmp_path)
    code = (
        "import sys, numpy, digits_client; from digits_client.testing import FakeDigitClient;"
        "print(digits_client.__file__, FakeDigitClient(7).classify(numpy.zeros(784)).digit);"
        "sys.exit(any(name in sys.modules for name in ('onnxruntime', 'tensorflow', 'digits_server', 'click')))"
    )
    command = [sys.executable, "-c", code]
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT / 'proto'}", "PATH": ""}
    done = subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == f"{tmp_path}/digits_client/__init__.py 7\n"
