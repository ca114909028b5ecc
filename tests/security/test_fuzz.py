"""Half a minute of attacks on each transport; `make fuzz` goes on for longer."""

import socket

import pytest
from conftest import start_server
from fuzz import campaign, log_faults
from packages import write_package


@pytest.mark.timeout(180)
def test_attacks_leave_the_server_as_it_was(tmp_path, transport):
    """After a campaign: the same process and memory, right answers, a log without stacks or forged lines.

    Who said nothing meanwhile has been hung up on.
    """
    write_package(tmp_path / "models" / "toy-b" / "1")
    server = start_server(tmp_path / "models", tmp_path, f"--transport={transport}")
    silent = socket.create_connection(("127.0.0.1", int(server.address.rpartition(":")[2])), timeout=20)
    outcomes, findings = campaign(server, 30, seed=20)
    with silent:
        while transport == "grpcio" and silent.recv(1 << 16):  # its own greeting; after 20 s it hangs up
            pass
    assert server.stop() == 0
    assert findings == [], outcomes


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"time": "", "level": "INFO", "logger": "x", "message": "forged?\\n{}"}', None),
        ("E1121 call.cc:358] odd", "not JSON"),
        ('{"level": "INFO", "message": "forged"}', "forged"),
        ('{"time": "", "level": "ERROR", "logger": "x", "message": "m", "exc_info": "Traceback"}', "stack"),
    ],
)
def test_the_judge_sees_what_is_wrong_with_a_log(line, fault):
    """Lines that are no JSON, lack what ours have, or hold a stack are findings; others are not."""
    found = log_faults(line)
    assert [each.partition(":")[0] for each in found] == ([fault] if fault else [])
