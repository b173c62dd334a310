from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from baton.cluster.commands.serve import StopSignals, welcome
from baton.cluster.config import load_config
from baton.cluster.directory import GatewayMember, Listing
from baton.cluster.gateway_process import port_choices, with_port_offset
from baton.cluster.local_ray import (
    MAX_STATE_DIR_CHARS,
    available_bytes,
    check_memory,
    make_state_dir,
    remove_state_dir,
)
from baton.cluster.terminal import Terminal
from baton.protos.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def test_a_taken_port_is_named() -> None:
    from baton.cluster.ports import check_ports

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = load_config(None, {"gateway.http_port": (port, "--port")})
        with pytest.raises(
            ConfigError, match=f"gateway.http_port {port} cannot be bound"
        ) as caught:
            check_ports(config.gateway)
        assert caught.value.param == "gateway.http_port"


def test_memory_that_is_not_there_is_named() -> None:
    check_memory(load_config(None, {"engine.kv_cache_bytes": (1 << 20, "x")}))
    huge = load_config(
        None, {"engine.kv_cache_bytes": (1 << 50, "x"), "engine.device": ("cpu", "x")}
    )
    with pytest.raises(
        ConfigError, match=r"need about 2097153\.. GiB .* lower engine.kv_cache_bytes"
    ):
        check_memory(huge)
    assert (available_bytes() or 1) > 0


def test_state_directories_are_short_and_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 60)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    path = make_state_dir()
    assert len(str(path)) <= MAX_STATE_DIR_CHARS
    assert path.stat().st_mode & 0o077 == 0
    assert list(deep.iterdir()) == []
    remove_state_dir(path)
    assert not path.exists()


def test_the_terminal_has_our_words_only(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from baton.cluster.terminal import Terminal\n"
        "with Terminal(Path(sys.argv[1])) as t:\n"
        "    print('noise'); os.write(2, b'noise of C\\n'); t.say('hello')\n"
        "    os.system('echo noise of a child')\n"
        "print('after')\n"
    )
    log = tmp_path / "log"
    result = subprocess.run(
        [sys.executable, "-c", code, str(log)], capture_output=True, text=True, check=True
    )
    assert result.stdout == "hello\nafter\n"
    assert result.stderr == ""
    assert sorted(log.read_text().splitlines()) == ["noise", "noise of C", "noise of a child"]


def test_a_closed_terminal_is_survived(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = (
        "import sys, time; from pathlib import Path; from baton.cluster.terminal import Terminal\n"
        "import signal; signal.signal(signal.SIGPIPE, signal.SIG_IGN); sys.stdin.readline()\n"
        "with Terminal(Path(sys.argv[1])) as t: t.say('to nobody')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(log)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdout.close()
    process.stdin.write(b"\n")
    process.stdin.close()
    process.wait(20)
    assert "to nobody" in log.read_text()


def test_the_first_signal_stops_in_order_and_handlers_come_back() -> None:
    former = signal.getsignal(signal.SIGTERM)
    with StopSignals() as stop:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(KeyboardInterrupt):
            stop.wait()
        assert signal.getsignal(signal.SIGTERM) != former
    assert signal.getsignal(signal.SIGTERM) == former


def test_the_second_signal_ends_at_once() -> None:
    code = (
        "import os, signal, time; from baton.cluster.commands.serve import StopSignals\n"
        "with StopSignals() as stop:\n"
        "    stop.stopping()\n"
        "    os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 130


def listing(*urls: str) -> Listing:
    gateways = tuple(
        GatewayMember(gateway_id=u, incarnation=u, http_url=u, grpc_address="h:9") for u in urls
    )
    return Listing(epoch="e", version=1, settled=True, workers=(), gateways=gateways, failures=())


def test_the_welcome_can_be_pasted() -> None:
    config = load_config(None, {"model_name": ("it", "x")})
    text = welcome(config, listing("http://h:1", "http://h:11"))
    for expected in ("http://h:1/v1/chat/completions", "also at http://h:11", "gRPC at h:9"):
        assert expected in text
    curl = next(line for line in text.splitlines() if "curl" in line)
    shown = subprocess.run(
        ["bash", "-c", curl.replace("curl", "printf '%s\\n'", 1)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert shown[-1] == '{"model": "it", "messages": [{"role": "user", "content": "Hi!"}]}'
    python = next(line for line in text.splitlines() if "python -c" in line)
    source = subprocess.run(
        ["bash", "-c", python.replace("python -c", "printf '%s'", 1)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    compile(source, "welcome", "exec")


def test_the_welcome_never_shows_a_key() -> None:
    config = load_config(None, {"gateway.api_keys": (["hunter2"], "--api-key")})
    text = welcome(config, listing("http://h:1"))
    assert "hunter2" not in text
    assert "$BATON_API_KEY" in text
    assert 'os.environ["BATON_API_KEY"]' in text


def test_gateways_of_one_node_have_their_own_ports() -> None:
    gateway = load_config(None, {}).gateway
    assert with_port_offset(gateway, 0) == gateway
    moved = with_port_offset(gateway, 20)
    assert (moved.http_port, moved.grpc_port) == (8020, 8021)
    free = with_port_offset(replace(gateway, http_port=0, grpc_port=None), 20)
    assert (free.http_port, free.grpc_port) == (0, None)
    config = load_config(None, {"gateway_replicas": (2, "test")})
    assert [g.http_port for g in port_choices(config)] == [8000, 8010]
    alone = replace(config, gateway_port_step=0)
    assert [g.http_port for g in port_choices(alone)] == [8000]


def test_the_terminal_restores_descriptors(tmp_path: Path) -> None:
    before = os.fstat(1).st_ino
    with Terminal(tmp_path / "log"):
        assert os.fstat(1).st_ino != before
    assert os.fstat(1).st_ino == before
