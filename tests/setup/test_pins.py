"""The pins: complete, in agreement with each other, and installed the same way by every pip on any day."""

import base64
import ensurepip
import hashlib
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROGRAMS = "perf-analyzer"  # a list of what is unpacked beside the environments, and never imported
LISTS = sorted(
    (file for file in (ROOT / "requirements").glob("*.txt") if file.stem != PROGRAMS), key=lambda file: file.stem
)
STAMPS = (".venv/.serve", ".venv/.web", ".venv/.dev", ".venv/.ray", ".venv/.notebook", "out/supply/.venv")
MADE_UP = {  # what a package of that release asks for; its newer release is on the index, and not pinned
    "app": {"1.0": ["plugin[extra]>=1"], "2.0": []},
    "plugin": {"1.0": ["below>=1; extra == 'extra'"], "2.0": ["below>=2; extra == 'extra'"]},
    "below": {"1.0": [], "2.0": []},
}


def pins(file):
    """Return the pinned requirements of a list, by their names; those of other platforms are left out."""
    lines = re.findall(r"^([^\s#-][^\\\n]*)", file.read_text(), re.MULTILINE)
    found = [Requirement(line) for line in lines]
    return {canonicalize_name(it.name): it for it in found if not it.marker or it.marker.evaluate()}


def set_ups():
    """Return the commands that make every environment, as make and the Dockerfile would run them."""
    made = subprocess.run(("make", "-nB", *STAMPS), cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return made + (ROOT / "Dockerfile").read_text()


def wheel(folder, name, version, needs):
    """Write an empty wheel and return its hash."""
    info = f"{name}-{version}.dist-info"
    extras = "Provides-Extra: extra\n" if name == "plugin" else ""
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{extras}"
        + "".join(f"Requires-Dist: {need}\n" for need in needs),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {path: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()) for path, text in files.items()}
    record = [f"{path},sha256={digest.rstrip(b'=').decode()}," for path, digest in digests.items()]
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in {**files, f"{info}/RECORD": "\n".join([*record, f"{info}/RECORD,,"])}.items():
            archive.writestr(file, text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """A folder of wheels, with a newer release of everything, and in it a complete list of pins of the older ones."""
    folder = tmp_path_factory.mktemp("index")
    lines = []
    for name, releases in MADE_UP.items():
        digests = {version: wheel(folder, name, version, needs) for version, needs in releases.items()}
        lines.append(f"{name}==1.0 --hash=sha256:{digests['1.0']}\n")
    (folder / "pins.txt").write_text("".join(lines))
    return folder


def bundled_pip():
    """Return the wheel of pip from which this Python makes new environments."""
    folder = sysconfig.get_config_var("WHEEL_PKG_DIR") or Path(ensurepip.__file__).parent / "_bundled"
    return next(Path(folder).glob("pip-*.whl"))


@pytest.mark.timeout(300)
def test_newer_releases_change_nothing(index, tmp_path):
    """The pip that comes with this Python installs the pins as all environments do, though newer releases exist."""
    (command,) = {re.sub(r"-q |--disable-\S+ ", "", it) for it in re.findall(r"pip (install .*)-r \S+", set_ups())}
    subprocess.run((sys.executable, "-m", "venv", "--without-pip", tmp_path), check=True)
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)}
    settings["PYTHONPATH"] = str(bundled_pip())
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")} | settings

    run = (tmp_path / "bin/python", "-m", "pip", *command.split(), "-r", "pins.txt")
    done = subprocess.run(run, cwd=index, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    installed = {path.name for path in tmp_path.rglob("*.dist-info")}
    assert installed == {f"{name}-1.0.dist-info" for name in MADE_UP}


def test_every_environment_is_checked():
    """Wherever a list of pins is installed, `pip check` looks at the result before the next one."""
    _, *steps = re.split(r"pip install .*-r requirements/", set_ups())
    assert len(steps) == len(STAMPS) + 3  # the images
    assert [step.partition("\n")[0] for step in steps if "pip check" not in step] == []


def test_lists_agree():
    """A package is pinned to the same release wherever it is pinned: the environments grow into each other."""
    releases = {}
    for file in LISTS:
        for name, pin in pins(file).items():
            releases.setdefault(name, set()).add(str(pin.specifier))
    assert {name: found for name, found in releases.items() if len(found) > 1} == {}


@pytest.mark.parametrize("file", LISTS, ids=[file.stem for file in LISTS])
def test_list_is_complete(file):
    """Whatever a pinned package demands, with the extras that others demand of it, is pinned in the same list."""
    pinned = pins(file)
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"].values()
    asked = {Requirement(line) for group in groups for line in group} | {Requirement(name) for name in pinned}
    looked_at, missing, unknown = set(), set(), set()
    while asked:
        requirement = asked.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if name not in pinned or (name, extra) in looked_at:
                continue
            looked_at.add((name, extra))
            try:
                demands = metadata.requires(name) or []
            except metadata.PackageNotFoundError:
                unknown.add(name)
                continue
            for demand in map(Requirement, demands):
                if not demand.marker or demand.marker.evaluate({"extra": extra}):
                    pin = pinned.get(canonicalize_name(demand.name))
                    if not pin or not demand.specifier.contains(
                        str(pin.specifier).removeprefix("=="), prereleases=True
                    ):
                        missing.add(f"{name}[{extra}]: {demand}")
                    asked.add(demand)
    assert missing == set()
    if unknown:
        pytest.skip(f"not installed, so not looked at: {len(unknown)} packages, {min(unknown)} among them")


def test_what_is_installed_is_what_is_pinned():
    """Installed once more, the list of all changes nothing, with no index to look at."""
    command = "install --dry-run --no-index --no-deps --require-hashes -r requirements/dev.txt"
    environment = {**os.environ, "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    run = (sys.executable, "-m", "pip", *command.split())
    done = subprocess.run(run, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Would install" not in done.stdout


@pytest.mark.parametrize(
    "target",
    [
        "serve",
        "web",
        "train",
        "report",
        "notebook",
        "loadtest",
        "bench",
        "image",
        "up",
        "down",
        "install",
        "test",
        "check",
        "format",
        "lint",
        "clean",
    ],
)
def test_make_knows_what_is_guessed(target):
    """`make help` names the targets that newcomers try, each with what it does."""
    helped = subprocess.run("make", cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert re.search(rf"^  {target} +\w+", helped, re.MULTILINE)


@pytest.mark.parametrize(
    ("target", "tool", "brings"), [("bench", "h2load", "nghttp2-client"), ("up", "docker", "engine")]
)
def test_missing_tool_is_named_before_anything_runs(tmp_path, target, tool, brings):
    """A target that can't go without a tool says what brings it, and has done nothing until then."""
    for name in ("make", "sh", "awk"):
        (tmp_path / name).symlink_to(Path("/usr/bin") / name)
    command = ("make", target, f"VENV={tmp_path / 'none'}")
    done = subprocess.run(command, cwd=ROOT, env={"PATH": str(tmp_path)}, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{tool} is missing" in done.stderr
    assert brings in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "none").exists()
