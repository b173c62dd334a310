"""Parsers by name, by chat template, from plugins, on the command line; the page of them all."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from baton.cluster.cli import baton
from baton.gateway.parsers.formats import thinking_of
from baton.gateway.parsers.plugins import load_registry
from baton.gateway.parsers.reasoning_formats import REASONING_FORMATS
from baton.gateway.parsers.registry import Detected, ParserRegistry
from baton.gateway.parsers.tool_formats import TOOL_FORMATS
from baton.protos.errors import ConfigError, InvalidRequestError

ROOT = Path(__file__).parents[3]
PLUGIN = """
from baton.gateway.parsers.formats import ToolFormat
from baton.gateway.parsers.json_calls import JsonCalls

ours = ToolFormat(
    names=("ours", "hermes"), machine=JsonCalls(starts=("<call>",), ends=("</call>",)),
    example="", models="ours", template_marks=("<call>",),
)
"""
HERMES = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'


@pytest.mark.parametrize("forms", [TOOL_FORMATS, REASONING_FORMATS])
def test_each_name_stands_for_one_format(forms: tuple[object, ...]) -> None:
    names = [name for form in forms for name in form.names]  # type: ignore[attr-defined]
    assert len(names) == len(set(names))


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no tool call parser 'herms': use one of .*hermes"):
        ParserRegistry().tool("herms")
    with pytest.raises(ConfigError, match=r"no reasoning parser 'x': .*qwen3"):
        ParserRegistry().reasoning("x")


@pytest.mark.parametrize(
    ("model_type", "template", "expected"),
    [
        ("qwen3", '<think></think><tool_call>{"name": x, "arguments": y}', ("hermes", "qwen3")),
        ("qwen3_next", "<tool_call><function=f><parameter=p>", ("qwen3_coder", None)),
        ("step3p5", "<tool_call><function=f><parameter=p><think></think>", ("step3p5", "step3p5")),
        ("glm4_moe", "<think></think><arg_key><arg_value>", ("glm45", "glm45")),
        ("gpt_oss", "<|channel|><|message|><|constrain|>", ("openai", "openai_gptoss")),
        ("llama", "<|python_tag|>", ("llama3_json", None)),
        ("deepseek_v3", "<｜tool▁calls▁begin｜>```json", ("deepseek_v3", None)),  # noqa: RUF001
        ("deepseek_v3", "<｜tool▁calls▁begin｜>", ("deepseek_v31", None)),  # noqa: RUF001
        ("kimi_k2", None, ("kimi_k2", "kimi_k2")),
        ("llama", "{{ messages }}", (None, None)),
        (None, None, (None, None)),
    ],
)
def test_the_template_and_the_model_type_choose(
    model_type: str | None, template: str | None, expected: tuple[str | None, str | None]
) -> None:
    assert ParserRegistry().detect(model_type, template) == Detected(*expected)


def test_a_request_says_whether_the_model_thinks() -> None:
    assert thinking_of({}) is None
    assert thinking_of({"enable_thinking": False}) is False
    assert thinking_of({"thinking": True, "reasoning_effort": "none"}) is False
    assert thinking_of({"reasoning_effort": "high"}) is True


def test_a_plugin_file_brings_a_format_and_wins(tmp_path: Path) -> None:
    file = tmp_path / "plugin.py"
    file.write_text(PLUGIN)
    registry = load_registry([file])
    assert registry.tool("hermes") is registry.tool("ours")
    assert registry.detect(None, "<call>").tool == "ours"
    assert ParserRegistry().tool("hermes").names[0] == "hermes"


def install(folder: Path, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package as pip leaves it, with one entry point."""
    (folder / "our_formats.py").write_text(PLUGIN)
    info = folder / "our_formats-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: our-formats\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[baton.tool_parsers]\nours = {value}\n")
    monkeypatch.syspath_prepend(folder)


def test_an_installed_package_brings_a_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "our_formats:ours", monkeypatch)
    assert load_registry().tool("ours").names[0] == "ours"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("our_formats:gone", "entry point 'ours' .*our_formats:gone.* cannot be loaded: Attr"),
        ("our_formats:__name__", "entry point 'ours' .* is a str"),
    ],
)
def test_a_package_that_brings_none_is_refused_by_its_entry_point(
    value: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, value, monkeypatch)
    with pytest.raises(ConfigError, match=message):
        load_registry()


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("plugin.py", "1 / 0", "ZeroDivisionError"),
        ("plugin.py", "x = 1", "no ToolFormat"),
        ("plugin.txt", "", "must end in .py"),
        ("missing.py", None, "FileNotFoundError"),
    ],
)
def test_a_bad_plugin_is_refused(
    tmp_path: Path, name: str, source: str | None, message: str
) -> None:
    file = tmp_path / name
    if source is not None:
        file.write_text(source)
    with pytest.raises(ConfigError, match=message):
        load_registry([file])


@pytest.mark.parametrize("chunk", [0, 1, 7])
def test_tools_parse_writes_a_line_for_each(chunk: int) -> None:
    lines = [
        {"id": "a", "text": f"Hi.{HERMES}", "token_ids": [1, 2]},
        {"id": 2, "text": f"<think>hm</think>{HERMES}"},
    ]
    arguments = ["tools", "parse", "--parser", "hermes", "--reasoning-parser", "deepseek_v3"]
    result = CliRunner().invoke(
        baton, [*arguments, "--chunk", str(chunk)], input="\n\n".join(map(json.dumps, lines))
    )
    calls = [{"name": "f", "arguments": '{"a": 1}'}]
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"id": "a", "content": "Hi.", "tool_calls": calls},
        {"id": 2, "content": None, "tool_calls": calls, "reasoning": "hm"},
    ]


def test_tools_parse_types_values_by_the_tools_and_takes_plugins(tmp_path: Path) -> None:
    file = tmp_path / "plugin.py"
    file.write_text(PLUGIN)
    tool = {"name": "f", "parameters": {"properties": {"n": {"type": "integer"}}}}
    text = "<tool_call><function=f><parameter=n>5</parameter></function></tool_call>"
    row = json.dumps({"id": 1, "text": text, "tools": [{"type": "function", "function": tool}]})
    result = CliRunner().invoke(baton, ["tools", "parse", "--parser", "qwen3_coder"], input=row)
    assert json.loads(result.stdout)["tool_calls"] == [{"name": "f", "arguments": '{"n": 5}'}]
    row = json.dumps({"id": 1, "text": HERMES.replace("tool_call", "call")})
    arguments = ["tools", "parse", "--parser", "ours", "--tool-parser-plugin", str(file)]
    result = CliRunner().invoke(baton, arguments, input=row)
    assert json.loads(result.stdout)["tool_calls"][0]["name"] == "f"


def test_tools_parse_leaves_special_tokens_out_and_drops_calls_that_are_forbidden() -> None:
    rows = [
        {"id": 1, "text": f"<bos>a<eos>{HERMES}"},
        {"id": 2, "text": f"<s>a<eos>{HERMES}", "special_tokens": ["<s>", "<tool_call>", ""]},
        {"id": 3, "text": f"a{HERMES}", "tool_choice": "none"},
    ]
    arguments = ["tools", "parse", "--parser", "hermes", "--chunk", "3"]
    result = CliRunner().invoke(baton, arguments, input="\n".join(map(json.dumps, rows)))
    found = [json.loads(line) for line in result.stdout.splitlines()]
    said = [(row["content"], len(row["tool_calls"])) for row in found]
    assert said == [("a", 1), ("a<eos>", 1), ("a", 0)]


def test_reasoning_parse_writes_a_line_for_each() -> None:
    rows = [
        {"id": 1, "text": "hm</think>yes"},
        {"id": 2, "text": "yes", "chat_template_kwargs": {"enable_thinking": False}},
        {"id": 3, "text": "yes", "prompt": "<think>\n\n</think>\n\n"},
        {
            "id": 4,
            "text": "<bos>hm</think>",
            "chat_template_kwargs": {"force_nonempty_content": True},
        },
    ]
    result = CliRunner().invoke(
        baton, ["reasoning", "parse", "--parser", "qwen3"], input="\n".join(map(json.dumps, rows))
    )
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"id": 1, "reasoning": "hm", "content": "yes"},
        {"id": 2, "reasoning": None, "content": "yes"},
        {"id": 3, "reasoning": None, "content": "yes"},
        {"id": 4, "reasoning": None, "content": "hm"},
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: this is not JSON"),
        ("[]", "line 2: this is no JSON object"),
        ("{}", "line 2: text must be a string"),
        ('{"text": "", "tools": {}}', "line 2: tools must be a list of tools"),
        ('{"text": "", "tools": [1]}', "line 2: tools must be a list of tools"),
        ('{"text": "", "prompt": 1}', "line 2: prompt must be a string"),
        ('{"text": "", "special_tokens": [1]}', "line 2: special_tokens must be a list of strings"),
    ],
)
def test_a_bad_line_is_refused_by_its_number(line: str, message: str) -> None:
    arguments = ["tools", "parse", "--parser", "hermes"]
    result = CliRunner().invoke(baton, arguments, input='{"text": "a"}\n' + line)
    assert isinstance(result.exception, InvalidRequestError)
    assert message in result.exception.message
    assert json.loads(result.stdout)["content"] == "a"


def test_the_page_of_formats_is_current() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate_tools.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.TARGET.read_text(encoding="utf-8") == module.document(), (
        "docs/tools.md is behind the code: run python docs/generate_tools.py"
    )
