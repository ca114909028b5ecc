"""The manifests as kustomize renders them; nothing here talks to a cluster."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

FOLDER = ROOT / "deploy/kubernetes"
KUBECTL = Path(sys.executable).parent / "kubectl"  # from PyPI, kustomize built in

Manifest = dict


def kustomize(folder: Path) -> list[Manifest]:
    """Return what a kustomization says."""
    done = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [*yaml.safe_load_all(done.stdout)]


@pytest.fixture(scope="session")
def rendered(tmp_path_factory) -> Callable[[str], list[Manifest]]:
    """Return what renders an overlay by its name, or `dev` with a component of `models-…`."""
    seen: dict[str, list[Manifest]] = {}

    def render(name: str) -> list[Manifest]:
        if name not in seen:
            folder = FOLDER / "overlays" / name
            if name.startswith("models-"):
                folder = tmp_path_factory.mktemp(name)
                up = Path(*[".."] * len(folder.resolve().parts[1:]))
                paths = {
                    key: [str(up / (FOLDER / path).relative_to("/"))]
                    for key, path in {"resources": "overlays/dev", "components": f"components/{name}"}.items()
                }
                (folder / "kustomization.yaml").write_text(yaml.safe_dump(paths))
            seen[name] = kustomize(folder)
        return seen[name]

    return render
