from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from tests.cluster.fake_server import FakeServer

from baton.cluster.cli import COMMANDS, baton, main
from baton.cluster.client import Endpoint
from baton.cluster.commands.chat import Conversation
from baton.cluster.commands.serve import KEYS, command, overrides
from baton.cluster.config import load_config
from baton.protos.errors import BatonError, ConfigError, UnavailableError


def every_command() -> list[tuple[str, ...]]:
    names: list[tuple[str, ...]] = [()]
    for name in COMMANDS:
        names.append((name,))
        found = baton.get_command(click.Context(baton), name)
        if isinstance(found, click.Group):
            names += [(name, inner) for inner in found.commands]
    return names


@pytest.mark.parametrize("names", every_command())
def test_help_describes_every_option(names: tuple[str, ...]) -> None:
    result = CliRunner().invoke(baton, [*names, "--help"])
    assert result.exit_code == 0
    found: Any = baton
    for name in names:
        found = found.get_command(click.Context(found), name)
    for parameter in found.params:
        if isinstance(parameter, click.Option) and parameter.name not in ("temperature", "help"):
            assert parameter.help, f"{names} {parameter.name} has no help"


def test_help_loads_nothing_heavy() -> None:
    """Seconds of imports would make `baton --help` feel broken."""
    heavy = ("ray", "torch", "pydantic", "grpc", "httpx", "rich", "fastapi", "numpy")
    code = (
        "import sys; from baton.cluster import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        f"print([m for m in {heavy!r} if m in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert output.rstrip().endswith("[]")


def test_refusals_are_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "baton.yaml"
    path.write_text("decode:\n  min_replica: 1\n")
    with pytest.raises(SystemExit) as caught:
        main(["config", "check", str(path)])
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert said == (
        f"baton: {path} line 2: decode.min_replica is not a known key; did you mean min_replicas?\n"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "/no/such/model"], "MODEL_DIR: model is '/no/such/model', which does not exist"),
        (["serve", "--decode-replicas", "0"], "--decode-replicas: "),
        (["serve", "--policy", "best"], "--policy: router: policy is 'best'"),
        (["serve", "--config", "/no/such.yaml"], "cannot read /no/such.yaml"),
        (["status", "--url", "ftp://x"], "--url is 'ftp://x', but must look like"),
        (["status", "--url", "http://127.0.0.1:9", "--once"], "cannot reach http://127.0.0.1:9"),
        (["bench", "serve", "--input-len", "9:3"], "must be 1 <= LOW <= HIGH"),
    ],
)
def test_errors_name_field_and_value(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 1
    assert said in capsys.readouterr().err


def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["srve"], ["serve", "--prot", "1"], ["bench", "serve", "--concurrency", "x"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    capsys.readouterr()


def test_every_serve_option_sets_a_key() -> None:
    plain = {"config_file", "no_grpc", "help"}
    assert {p.name for p in command.params} - plain == set(KEYS)
    given = {
        "model_dir": None,
        "port": 0,
        "api_key": ("a", "b"),
        "decode_replicas": 2,
        "device": "cpu",
    }
    keys = overrides(given, no_grpc=True)
    config = load_config(None, keys | {"model": (str(model_dir()), "MODEL_DIR")})
    assert config.gateway.http_port == 0
    assert config.gateway.grpc_port is None
    assert config.gateway.api_keys == ("a", "b")
    assert config.decode.min_replicas == 2
    assert config.decode.engine.device == config.prefill.engine.device == "cpu"


def model_dir() -> Path:
    return Path(__file__).resolve().parents[2] / "models" / "baton-tiny"


def test_status_once_and_json(server: FakeServer) -> None:
    once = CliRunner().invoke(
        baton, ["status", "--url", server.url + "/v1/", "--once"], env={"COLUMNS": "160"}
    )
    assert once.exit_code == 0, once.output
    for expected in ("decode-1", "25%", "1,234/s", "5.1 ms", "0.2 s", "77"):
        assert expected in once.output
    document = CliRunner().invoke(baton, ["status", "--url", server.url, "--json"])
    assert json.loads(document.output)["workers"][0]["worker_id"] == "decode-1"


def conversation(server: FakeServer) -> Conversation:
    return Conversation(
        endpoint=Endpoint(url=server.url, api_key="k"),
        model="fake",
        system="Be brief.",
        settings={"temperature": 0.0},
        show_plan=True,
    )


def test_a_conversation_remembers(server: FakeServer) -> None:
    talk = conversation(server)
    pieces: list[str] = []
    talk.ask("Hi", lambda piece, thought: pieces.append(piece))
    talk.ask("Again", lambda piece, thought: pieces.append(piece))
    assert "".join(pieces) == "Hello!Hello!"
    assert talk.plan == "decode=d0 reason=test"
    assert server.headers[0]["authorization"] == "Bearer k"
    assert server.headers[0]["x-baton-explain"] == "1"
    assert [m["content"] for m in server.bodies[1]["messages"]] == [
        "Be brief.",
        "Hi",
        "Hello!",
        "Again",
    ]
    assert talk.obey("/reset") == "forgotten"
    talk.obey("/system ")
    talk.ask("New", lambda piece, thought: None)
    assert [m["content"] for m in server.bodies[2]["messages"]] == ["New"]
    assert "/exit" in talk.obey("/nonsense")


def test_ctrl_c_keeps_what_was_said(server: FakeServer) -> None:
    talk = conversation(server)

    def stop_after_two(piece: str, thought: bool) -> None:
        if piece == "lo":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        talk.ask("Hi", stop_after_two)
    talk.ask("Go on", lambda piece, thought: None)
    assert [m["content"] for m in server.bodies[1]["messages"]] == [
        "Be brief.",
        "Hi",
        "Hello",
        "Go on",
    ]


@pytest.mark.parametrize(
    ("behave", "said"),
    [
        ("refuse", "answered 429: too much at once"),
        ("error_event", "the engine failed"),
        ("cut", "lost http://"),
    ],
)
def test_a_failed_question_was_never_asked(server: FakeServer, behave: str, said: str) -> None:
    talk = conversation(server)
    server.behave = behave
    with pytest.raises(BatonError, match=said):
        talk.ask("Hi", lambda piece, thought: None)
    server.behave = "ok"
    talk.ask("Hello?", lambda piece, thought: None)
    assert [m["content"] for m in server.bodies[1]["messages"]] == ["Be brief.", "Hello?"]


def test_chat_command_talks_until_the_end_of_input(server: FakeServer) -> None:
    result = CliRunner().invoke(
        baton, ["chat", "--url", server.url, "--plan"], input="Hi\n/reset\n/help\n"
    )
    assert result.exit_code == 0, result.output
    for expected in ("fake at", "Hello!", "forgotten", "/exit", "reason=test"):
        assert expected in result.output


def test_endpoints() -> None:
    assert Endpoint(url="http://h:1/v1/").base == "http://h:1"
    assert "secret" not in repr(Endpoint(url="http://h", api_key="secret"))
    for wrong in ("h:1", "", "http://"):
        with pytest.raises(ConfigError, match="--url"):
            Endpoint(url=wrong)


def test_a_server_that_is_no_gateway(server: FakeServer) -> None:
    from baton.cluster.client import get_json

    with pytest.raises(BatonError, match="answered 404: no such path"):
        get_json(Endpoint(url=server.url), "/nothing")
    with pytest.raises(UnavailableError, match="cannot reach"):
        get_json(Endpoint(url="http://127.0.0.1:9"), "/")
