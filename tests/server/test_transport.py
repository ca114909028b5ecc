"""Choosing a transport."""

import sys

import pytest

from digits_server.config import Config, SettingRefused
from digits_server.rpc import transports as transport


@pytest.mark.parametrize(("setting", "name"), [("auto", "grpcio"), ("grpcio", "grpcio"), ("native", "native")])
async def test_setting_chooses_the_transport(setting, name):
    """Each setting makes its transport; auto is grpcio."""
    assert transport.make(Config(transport=setting)).name == name


async def test_transport_that_is_not_installed_is_refused(monkeypatch):
    """Asking for native without its package is an error that names the setting and what to install."""
    monkeypatch.setitem(sys.modules, "pygrpc_native", None)
    monkeypatch.delitem(sys.modules, "digits_server.rpc.native", raising=False)
    with pytest.raises(SettingRefused, match=r"--transport: native needs .* digits-server\[native\]"):
        transport.make(Config(transport="native"))
