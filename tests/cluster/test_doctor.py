from __future__ import annotations

import json
import signal
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner

from baton.cluster.cli import baton
from baton.cluster.config import load_config
from baton.cluster.doctor import child, host
from baton.cluster.doctor.versions import judge

CPU_ON_FREE_PORTS = "engine: {device: cpu}\ngateway: {http_port: 0, grpc_port: 0}\n"


def test_a_machine_that_can_serve_is_ok(tmp_path: Path) -> None:
    """All of it for real: NIXL's agents, a block of KV, the child processes."""
    path = tmp_path / "baton.yaml"
    path.write_text(CPU_ON_FREE_PORTS)
    result = CliRunner().invoke(baton, ["doctor", str(path), "--json"])
    document = json.loads(result.output)
    by_check = {finding["check"]: finding for finding in document["findings"]}
    for check in ("configuration", "ports", "GPU", "NIXL", "NIXL on cpu"):
        assert by_check[check]["state"] == "ok", by_check[check]
    assert "UCX" in by_check["NIXL"]["found"]
    assert {"versions", "shared memory", "file descriptors"} <= set(by_check)
    states = [finding["state"] for finding in document["findings"]]
    assert document["ok"] == ("problem" not in states)
    assert result.exit_code == (0 if document["ok"] else 1)
    assert all(f["fix"] for f in document["findings"] if f["state"] != "ok")


def test_a_wrong_file_is_a_problem_that_can_be_read_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "run_check", lambda *arguments: [])
    path = tmp_path / "baton.yaml"
    path.write_text("decode:\n  min_replica: 1\n")
    result = CliRunner().invoke(baton, ["doctor", str(path)])
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert (
        f"problem: configuration: {path} line 2: decode.min_replica is not a known key; did you "
        "mean min_replicas? To fix it: change that; docs/configuration.md describes every key."
    ) in lines
    assert lines[-1].startswith("1 problem, ")


def test_a_taken_port_is_a_problem() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        finding = host.ports(load_config(None, {"gateway.http_port": (port, "--port")}))
    assert finding.state == "problem"
    assert f"gateway.http_port {port} cannot be bound" in finding.found
    assert finding.fix.startswith("choose another, or 0 for any free one")


def test_limits_of_the_machine() -> None:
    config = load_config(None, {})
    assert host.file_descriptors(config, soft=1024).state == "problem"
    assert host.file_descriptors(config, soft=65536).state == "ok"
    assert host.shared_memory(config, Path("/no/such/folder")).state == "problem"
    huge = load_config(None, {"ray.object_store_bytes": (1 << 60, "x")})
    finding = host.shared_memory(huge)
    assert finding.state == "problem"
    assert "--shm-size" in finding.fix


def test_versions_are_judged_by_extra_and_platform() -> None:
    lines = [
        "click>=8.1",
        "grpcio<1.79,>=1.78",
        "numpy>=1.26",
        'torch>=2.11; extra == "worker"',
        'matplotlib>=3.9; extra == "sim"',
        'lmcache==0.5.6; extra == "lmcache"',
        'pytest>=8; extra == "test"',
        'pywin32>=1; sys_platform == "win32"',
    ]
    installed = {"click": "8.2", "grpcio": "1.80.0", "lmcache": "0.5.5", "pytest": "1"}
    found = [(f.state, f.found) for f in judge(lines, installed.get)]
    assert found == [
        ("problem", "grpcio is 1.80.0, but Baton needs <1.79,>=1.78."),
        ("problem", "numpy is not installed: without it nothing runs."),
        (
            "warning",
            "torch is not installed: without it no prefill or decode worker runs here.",
        ),
        ("problem", "lmcache is 0.5.5, but Baton needs ==0.5.6."),
    ]
    (fine,) = judge(lines[:1], installed.get)
    assert fine.state == "ok"


def test_a_check_that_hangs_dies_or_fails_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ends.py").write_text(
        "import os, sys, time\n"
        "if sys.argv[1] == 'hangs': time.sleep(60)\n"
        f"if sys.argv[1] == 'dies': os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
        "sys.exit('first line\\nno such driver')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    said = {
        how: child.run_check("NIXL", "ends", [how], "reboot.", limit_s=limit_s)[0].line
        for how, limit_s in (("hangs", 1.0), ("dies", 60.0), ("fails", 60.0))
    }
    assert said == {
        "hangs": "problem: NIXL: No answer within 1 seconds. To fix it: reboot.",
        "dies": "problem: NIXL: The check was ended by SIGKILL. To fix it: reboot.",
        "fails": "problem: NIXL: The check ended with exit status 1. It said: no such driver. "
        "To fix it: reboot.",
    }
