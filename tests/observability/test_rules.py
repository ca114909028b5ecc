"""The alerts: that they ring when they should, on metrics that exist, and that somebody who hears one finds help."""

import re
import shutil
import subprocess

import pytest
import yaml
from conftest import ROOT

RULES = ROOT / "deploy/prometheus/rules/digits.yml"
TESTS = ROOT / "tests/observability/rules.test.yml"


@pytest.fixture(scope="module")
def rules():
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def promtool(*arguments):
    if not shutil.which("promtool"):
        pytest.skip("no promtool (Debian: apt-get install prometheus)")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_are_valid():
    """Prometheus' own tool takes the rules."""
    promtool("check", "rules", str(RULES))


def test_alerts_ring_when_they_should():
    """On made-up histories each alert rings for its trouble, with its text, and is quiet without."""
    promtool("test", "rules", str(TESTS))


def test_every_alert_is_tried(rules):
    """No alert is without a history on which it rings and one on which it is quiet."""
    tried = [case for test in yaml.safe_load(TESTS.read_text())["tests"] for case in test.get("alert_rule_test", ())]
    alerts = {rule["alert"] for rule in rules if "alert" in rule}
    assert {case["alertname"] for case in tried if case["exp_alerts"]} == alerts
    assert {case["alertname"] for case in tried if not case["exp_alerts"]} == alerts


def test_every_alert_is_in_the_runbook(rules):
    """The annotation of each alert leads to a section of the runbook, and there are no others."""
    sections = re.findall(r"^## (\w+)$", (ROOT / "docs/runbook.md").read_text(), re.MULTILINE)
    alerts = {rule["alert"]: rule["annotations"]["runbook"] for rule in rules if "alert" in rule}
    assert alerts == {section: f"docs/runbook.md#{section.lower()}" for section in sections}
