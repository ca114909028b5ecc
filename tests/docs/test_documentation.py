"""The guides: their samples run as written, their commands exist, their links lead somewhere, their errors are real.

A block of code below a line `<!-- not run: REASON -->` is left alone. Of what `make` is asked for, only that it can be.
"""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import trustme
from conftest import ROOT, start_server

from digits.v1 import classifier_pb2 as pb
from digits.v1 import classifier_pb2_grpc as pb_grpc

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OWN_TEST = "your-model.md"
"""Runs as one story, with training images at hand: tests/export/test_your_model.py."""
BIN = Path(sys.executable).parent
GRPC, WEB = "127.0.0.1:50051", "127.0.0.1:8080"
"""Addresses as the guides have them; those of the tests' own servers take their place."""
ASKED = {
    "783 bytes": pb.ClassifyRequest(pixels=bytes(783)),
    "nothing": pb.ClassifyRequest(),
    "NaN, or 1.5": pb.ClassifyRequest(vectors=[math.nan] * 784),
    "unknown model": pb.ClassifyRequest(pixels=bytes(784), model="nope"),
    "5 MB": pb.ClassifyRequest(pixels=bytes(6400 * 784)),
    "5,000 images": pb.ClassifyRequest(pixels=bytes(5000 * 784)),
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self):
        return f"{self.page.name}:{self.line}"


def blocks(*languages):
    """Return the blocks in some languages, without those that say why they can't be run."""
    fence = re.compile(r"(<!-- not run: .+ -->\n)?^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
    return [
        Block(page, page.read_text()[: it.start()].count("\n") + 1, it[2], it[3])
        for page in PAGES
        if page.name != OWN_TEST
        for it in fence.finditer(page.read_text())
        if it[2] in languages and not it[1]
    ]


def commands(block):
    """Return the commands of a console and what each is shown to print."""
    shown = re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]
    return [(command.partition("\n")[0], command.partition("\n")[2]) for command in shown]


@dataclass
class Desk:
    """A folder like the repository's root, where commands may write, and servers beside it."""

    folder: Path
    address: str
    web: str

    def here(self, text):
        """Return code or a command with the addresses of these servers."""
        text = text.replace(GRPC, self.address).replace(WEB, self.web)
        return re.sub(r"(DigitClient)\((?=\)|model)", rf'\1("{self.address}", ', text)

    @property
    def environment(self):
        """What the shell of the reader who has activated .venv would know, and ports that are free."""
        mine = {"DIGITS_CLIENT_SERVER": self.address, "DIGITS_SERVER_PORT": "0", "DIGITS_SERVER_METRICS_PORT": "0"}
        return {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **mine}

    def run(self, *command, shell=False):
        given = {"cwd": self.folder, "env": self.environment, "capture_output": True, "text": True, "timeout": 100}
        return subprocess.run(command[0] if shell else command, shell=shell, check=False, **given)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A copy of what the samples write to, links to the rest, and a server and its page that run on it."""
    folder = tmp_path_factory.mktemp("desk")
    for path in ROOT.iterdir():
        if path.name not in {".git", ".venv", "models", "out"}:
            (folder / path.name).symlink_to(path)
    (folder / ".venv").symlink_to(sys.prefix)
    shutil.copytree(ROOT / "models", folder / "models")
    shutil.copytree(ROOT / "models/digits-mlp/3", folder / "out/ann-dropout/1")  # as if it had been trained
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    issued.private_key_pem.write_to_path(folder / "server.key")
    issued.cert_chain_pems[0].write_to_path(folder / "server.pem")
    (tokens,) = (block.text for block in blocks("toml") if block.page.name == "security.md")
    (folder / "tokens.toml").write_text(tokens)
    server = start_server(folder / "models", tmp_path_factory.mktemp("server"))
    page = subprocess.Popen(
        (BIN / "digits-web", "--port=0", f"--server={server.address}"), stdout=subprocess.PIPE, text=True
    )
    with page.stdout as output:
        web = re.search(r"http://(\S+?)[/,]?\s", output.readline())[1]
    yield Desk(folder, server.address, web)
    page.terminate()
    assert page.wait(30) == 0
    assert server.stop() == 0


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_code_runs(desk, block):
    """Python code can be copied and run as it stands beside a server; what comments say it prints, it prints."""
    done = desk.run(sys.executable, "-c", desk.here(block.text))
    assert done.returncode == 0, done.stderr
    printed = re.findall(r"print\(.*#  ?prints (.*)$", block.text, re.MULTILINE)
    assert done.stdout.splitlines()[: len(printed)] == printed


@pytest.mark.parametrize("block", blocks("console"), ids=str)
def test_commands_run(desk, block):
    """Commands run, one after the other, and print what is shown below them; `...` stands for anything."""
    for command, shown in commands(block):
        program = re.search(r"(?:^|\| )(?!echo)(?:\w+=\S+ )*(?:\.venv/bin/)?([\w.-]+)", command)[1]
        if not shutil.which(program, path=desk.environment["PATH"]) and "=$(" not in command:
            pytest.skip(f"{program} is not installed")
        if program == "make":
            done = desk.run(re.sub(r"\bmake\b", "make --dry-run", command, count=1), shell=True)
            assert done.returncode == 0, f"{command}: {done.stderr}"
        elif program == "digits-server":
            starts(desk, command)
        else:
            done = desk.run(desk.here(command), shell=True)
            assert done.returncode == 0, f"{command}: {done.stderr}"
            pattern = ".*".join(map(re.escape, re.split(r"\.\.\.|…", shown.rstrip("\n"))))
            assert not shown or re.fullmatch(pattern, done.stdout.rstrip("\n"), re.DOTALL), done.stdout


def starts(desk, command):
    """Start a server as a guide does, and stop it."""
    process = subprocess.Popen(
        f"exec env {command}", shell=True, cwd=desk.folder, env=desk.environment, stdout=subprocess.PIPE, text=True
    )
    with process.stdout as output:
        assert "ready" in output.readline(), command
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, command


@pytest.mark.parametrize("block", blocks("json", "toml"), ids=str)
def test_data_can_be_read(block):
    """Files shown are files of their kind."""
    assert (json.loads if block.language == "json" else tomllib.loads)(block.text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_targets_exist(page):
    """Each `make TARGET` in a page's text is a target of the Makefile."""
    rules = re.findall(r"^([a-z][a-z -]*):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = set(re.findall(r"`(?:\w+=\S+ )*make ([a-z-]+)", page.read_text()))
    assert named <= {name for rule in rules for name in rule.split()}


@pytest.mark.parametrize("asked", ASKED)
def test_shown_errors_are_the_servers(desk, asked):
    """A request that can't be answered gets the status and the words that the README has for it."""
    readme = PAGES[0].read_text()
    status, message = re.search(rf"^\| {re.escape(asked)} \| `(\w+)` \| `(.*)` \|$", readme, re.MULTILINE).groups()
    with grpc.insecure_channel(desk.address) as channel, pytest.raises(grpc.RpcError) as refused:
        pb_grpc.DigitClassifierStub(channel).Classify(ASKED[asked], timeout=20)
    assert (refused.value.code().name, refused.value.details()) == (status, message)


@pytest.mark.parametrize("folder", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs"])
def test_links_lead_somewhere(folder):
    """Each link to a file of this repository finds one, and each to a section its heading."""
    pages = [ROOT / folder] if folder.endswith(".md") else sorted((ROOT / folder).rglob("*.md"))
    for file in pages:
        for target, section in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]*))?\)", file.read_text()):
            found = (file.parent / target) if target else file
            assert found.exists(), f"{file}: {target}"
            if section:
                headings = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
                names = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert section in names, f"{file}: {target}#{section}"
