"""How far input is from training: what Prometheus makes of the images that a shipped model has counted."""

import gzip
import subprocess
from pathlib import Path
from shutil import which

import numpy as np
import pytest
import yaml
from conftest import ROOT, mnist_test_set

from digits_server.metrics.definitions import Metrics
from digits_server.models.package import Key, load

FASHION = Path("/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz")
pytestmark = pytest.mark.skipif(not which("promtool"), reason="no promtool (Debian: apt-get install prometheus)")


@pytest.fixture(scope="module", params=["digits-mlp/3", "digits-cnn/3"])
def package(request):
    name, version = request.param.split("/")
    return load(ROOT / "models", Key(name, int(version)), threads=1)


@pytest.fixture(scope="module")
def mnist():
    return mnist_test_set()[0].reshape(-1, 28, 28)


@pytest.fixture
def drift(package, tmp_path):
    """Return what lets the rules judge an hour of (n, 28, 28) images, given `<feature> <operator> <index>`."""

    def check(images, *expectations):
        metrics = Metrics()
        metrics.predicted(package)(package.engine.predict([images.reshape(-1, 784)]))
        series = [
            {
                "series": sample.name + "{" + ",".join(f'{k}="{v}"' for k, v in sample.labels.items()) + ',job="j"}',
                "values": f"0+{sample.value:g}x60" if metric.type == "counter" else f"{sample.value}x60",
            }
            for metric in metrics.collect()
            for sample in metric.samples
            if sample.name in {"digits_input_images_total", "digits_reference_share"}
        ]
        asked = [
            {
                "expr": f'digits_input_drift{{feature="{feature}"}} {operator} bool {limit}',
                "eval_time": "60m",
                "exp_samples": [{"labels": f'{{job="j",model="{package.name}",feature="{feature}"}}', "value": 1}],
            }
            for feature, operator, limit in map(str.split, expectations)
        ]
        rules = str(ROOT / "deploy/prometheus/rules/digits.yml")
        case = {"interval": "1m", "input_series": series, "promql_expr_test": asked}
        (tmp_path / "case.yml").write_text(
            yaml.safe_dump({"rule_files": [rules], "evaluation_interval": "1h", "tests": [case]})
        )
        done = subprocess.run(
            ["promtool", "test", "rules", tmp_path / "case.yml"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return check


def test_quiet_on_mnist(drift, mnist):
    """Test images are no drift, nor are 5,000 of them in the order of the file, writer by writer."""
    drift(mnist, "ink < 0.03", "class < 0.03")
    for start in range(0, 5001, 2500):
        drift(mnist[start : start + 5000], "ink < 0.1", "class < 0.1")


def test_rings_on_what_is_no_mnist(drift, mnist):
    """Inverted, bolder and fainter input is drift by its ink, and tells nothing by its classes if they are right."""
    drift(255 - mnist, "ink > 1", "class > 1")
    drift(np.maximum(mnist, np.roll(mnist, 1, axis=2)), "ink > 0.25", "class < 0.1")
    drift(mnist // 2, "ink > 1", "class < 0.1")


def test_rings_on_one_sided_input(drift, package, mnist):
    """Digits of which some never come are drift by class."""
    drift(mnist[package.engine.predict([mnist.reshape(-1, 784)]).digits < 7], "class > 0.25")


def test_rings_on_shifted_images(drift, mnist):
    """Images moved by six pixels have the same ink, but the model sees other digits in them."""
    drift(np.roll(mnist, (6, 6), axis=(1, 2)), "ink < 0.1", "class > 0.25")


@pytest.mark.skipif(not FASHION.exists(), reason=f"no {FASHION} (Debian: apt-get install dataset-fashion-mnist)")
def test_rings_on_fashion(drift):
    """Clothes are drift by ink and by class."""
    clothes = np.frombuffer(gzip.decompress(FASHION.read_bytes()), np.uint8, offset=16)
    drift(clothes.reshape(-1, 28, 28), "ink > 0.25", "class > 0.25")
