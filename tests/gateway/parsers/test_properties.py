"""What holds for every format and any text: cuts change nothing, nothing raises, no held text grows
without bound, arguments are JSON objects.
"""

from __future__ import annotations

import itertools
import json
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baton.gateway.parsers import formats, reader
from baton.gateway.parsers.events import Event, ReasoningDelta, ToolCallStart, collect
from baton.gateway.parsers.formats import ReasoningFormat, StreamParser, ToolFormat
from baton.gateway.parsers.json_stream import JsonPrefix
from baton.gateway.parsers.machine import MachineParser
from baton.gateway.parsers.reader import MAX_HELD_CHARS
from baton.gateway.parsers.reasoning_formats import REASONING_FORMATS
from baton.gateway.parsers.schema import ToolSchemas
from baton.gateway.parsers.tool_formats import TOOL_FORMATS

TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": ["integer", "null"]},
                "tags": {"type": "array", "items": {"type": "string"}},
                "where": {"anyOf": [{"type": "object"}, {"type": "string"}]},
            },
        },
    },
}
SCRAPS = (
    " ", "\n", "a word", "é🎉", "f", "city", "{", "}", "[", "]", ",", ":", '"', "'", "\\", "(", ")",
    "=", "null", "42", "functions.f:0", '{"name": "f", "arguments": {"city": "Paris"}}', "to=f ",
    '"f">', '"city" string="true">', "f(city='Paris')", "<![CDATA[", "&amp;", "</co: 0:[1]>", "<",
    '"\\ud83d"',
)  # fmt: skip
LONG = "Paris, where {[it]} rains " * 12
STREAMING = (
    "hermes", "kimi_k2", "mistral", "deepseek_v31", "llama3_json", "qwen3_coder", "glm45",
    "deepseek_v32", "minimax_m2", "seed_oss", "step3", "hy_v3",
)  # fmt: skip
# Formats whose peers pass on what was written of a call that the end of the text cuts off.
AS_WRITTEN = ("plamo3",)
EXAMPLES = settings(max_examples=12, deadline=None, derandomize=True)
Form = ToolFormat | ReasoningFormat


def of(form: Form) -> StreamParser:
    if isinstance(form, ToolFormat):
        return formats.tool_parser(form, [TOOL])
    return formats.reasoning_parser(form)


def fed(parser: StreamParser, pieces: list[str]) -> list[Event]:
    events = [event for piece in pieces for event in parser.feed(piece)]
    return events + parser.finish()


def texts(form: Form) -> st.SearchStrategy[str]:
    """Its example cut to pieces that are dropped, doubled and mixed with markers and scraps."""
    markers = tuple(m for m in form.machine.markers if m)
    # Long enough that arguments are passed on while they come.
    long = form.example.replace("Paris", LONG)
    pieces = st.sampled_from((*markers, *SCRAPS, form.example, long))
    cuts = st.integers(0, len(long))
    part = st.builds(lambda a, b: long[min(a, b) : max(a, b)], cuts, cuts)
    return st.lists(st.one_of(pieces, part), max_size=12).map("".join)


def cut(data: st.DataObject, text: str) -> list[str]:
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8), label="cuts"))
    edges = [0, *places, len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def name_of(form: Form) -> str:
    return f"{'tool' if isinstance(form, ToolFormat) else 'reasoning'}-{form.names[0]}"


ALL: tuple[Form, ...] = (*TOOL_FORMATS, *REASONING_FORMATS)
each_format = pytest.mark.parametrize("form", ALL, ids=name_of)


@each_format
@EXAMPLES
@given(data=st.data())
def test_cuts_change_nothing_and_arguments_are_objects(form: Form, data: st.DataObject) -> None:
    text = data.draw(texts(form), label="text")
    whole = collect(fed(of(form), [text]))
    assert collect(fed(of(form), cut(data, text))) == whole
    assert collect(fed(of(form), list(text))) == whole
    assert all(call.name for call in whole.tool_calls)
    for call in whole.tool_calls[: -1 if form.names[0] in AS_WRITTEN else None]:
        assert isinstance(json.loads(call.arguments), dict)


@each_format
@EXAMPLES
@given(data=st.data())
def test_what_is_held_is_bounded(form: Form, data: st.DataObject) -> None:
    parser = MachineParser(form.machine, ToolSchemas([TOOL]), max_held=60)
    text = data.draw(texts(form), label="text")
    for piece in cut(data, text):
        parser.feed(piece)
        assert parser.num_held <= 60 + len(piece) + 2 * max(map(len, form.machine.markers))
    parser.finish()


@pytest.mark.parametrize(
    "value",
    ["\\ud800", "9" * 5000, "[" * 1200, '{"a":' * 1200 + "1" + "}" * 1200],
    ids=["half a character", "number", "lists", "objects"],
)
def test_values_beyond_what_json_or_python_read(value: str) -> None:
    # Typed, so that formats without quotes read them, too.
    parameters = {"type": "object", "properties": {"city": {"type": ["integer", "object"]}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    for form, quoted in itertools.product(TOOL_FORMATS, ("Paris", '"Paris"')):
        text = form.example.replace(quoted, value)
        whole = collect(fed(formats.tool_parser(form, [tool]), [text]))
        pieces = [text[i : i + 997] for i in range(0, len(text), 997)]
        assert collect(fed(formats.tool_parser(form, [tool]), pieces)) == whole
        # Half a character could not be sent.
        "".join(c.name + c.arguments for c in whole.tool_calls).encode()


@pytest.mark.parametrize("form", TOOL_FORMATS, ids=name_of)
def test_the_example_is_a_call(form: ToolFormat) -> None:
    found = collect(fed(of(form), list(form.example)))
    names = [call.name for call in found.tool_calls]
    assert names[0] == "f"
    assert json.loads(found.tool_calls[0].arguments) == {"city": "Paris"}
    assert not found.content.strip()


@pytest.mark.parametrize("form", REASONING_FORMATS, ids=name_of)
def test_the_example_is_a_thought_and_an_answer(form: ReasoningFormat) -> None:
    parser = formats.reasoning_parser(form, thinking=True)
    found = collect(fed(parser, list(form.example)))
    if form.names[0] == "minimax_m2_append_think":
        assert found.content == "<think>" + form.example
    else:
        assert (found.reasoning, found.content.strip()) == ("a thought", "an answer")


@pytest.mark.parametrize("form", TOOL_FORMATS, ids=name_of)
def test_text_without_markers_passes_at_once(form: ToolFormat) -> None:
    parser = of(form)
    said = "".join(getattr(e, "text", "") for e in parser.feed("The answer is 42. "))
    assert said.startswith("The answer is 42.")


def test_thoughts_stream_before_the_answer() -> None:
    form = next(f for f in REASONING_FORMATS if "qwen3" in f.names)
    parser = formats.reasoning_parser(form, prompt="<|im_start|>assistant\n<think>\n")
    assert parser.feed("Hmm") == [ReasoningDelta("Hmm")]
    assert parser.feed(" <") == [ReasoningDelta(" ")]
    assert collect(parser.feed("/think>Yes")).content == "Yes"


def test_a_call_beyond_the_bound_is_content() -> None:
    form = next(f for f in TOOL_FORMATS if "gemma4" in f.names)
    text = '<|tool_call>call:f{city:<|"|>' + "x" * MAX_HELD_CHARS + '<|"|>}'
    whole: Any = collect(fed(of(form), [text]))
    assert whole.content == text
    halves = [text[:1000], text[1000:-5], text[-5:]]
    assert collect(fed(of(form), halves)) == whole


def num_calls(form: Form, text: str) -> int:
    """How many functions run for a text that comes in small pieces."""
    parser, count = of(form), 0

    def tally(frame: object, event: str, arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(tally)
    try:
        fed(parser, [text[i : i + 50] for i in range(0, len(text), 50)])
    finally:
        sys.setprofile(None)
    return count


@each_format
def test_calls_begun_in_vain_take_work_by_length(
    form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "MAX_REREAD_CHARS", 500)
    for share in (0.4, 0.8):
        begun = form.example[: int(len(form.example) * share)]
        short, long = (begun * (size // len(begun) + 1) for size in (1000, 4000))
        pieces = [long[i : i + 50] for i in range(0, len(long), 50)]
        # Compiles patterns, too, which is not to be counted below.
        assert collect(fed(of(form), pieces)) == collect(fed(of(form), [long]))
        # Sixteen times, if each were read to the end.
        assert num_calls(form, long) < 8 * num_calls(form, short) + 1000


@pytest.mark.parametrize("name", STREAMING)
def test_long_arguments_come_while_they_are_written(name: str) -> None:
    form = next(f for f in TOOL_FORMATS if name in f.names)
    text = form.example.replace("Paris", LONG)
    parser = of(form)
    early = [e for char in text[: -len(LONG) // 4] for e in parser.feed(char)]
    assert isinstance(early[0], ToolCallStart)
    assert len(early) > 5
    found = collect([*early, *parser.feed(text[-len(LONG) // 4 :]), *parser.finish()])
    assert [json.loads(call.arguments) for call in found.tool_calls] == [{"city": LONG}]
    cut = collect(fed(of(form), [text[: len(text) - len(LONG) // 2]]))
    assert LONG.startswith(json.loads(cut.tool_calls[0].arguments)["city"])


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(value=st.dictionaries(st.text(), JSON), indent=st.sampled_from((None, 1)), data=st.data())
def test_every_prefix_of_an_object_can_be_closed(
    value: dict[str, Any], indent: int | None, data: st.DataObject
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=data.draw(st.booleans()))
    if data.draw(st.booleans(), label="spoiled"):
        place = data.draw(st.integers(1, len(text)))
        text = text[:place] + data.draw(st.text(max_size=2)) + text[place + 1 :]
    prefix, said, at = JsonPrefix(), "", 0
    for end in range(1, len(text) + 1):
        at, more = prefix.push(text[:end], at)
        said += more
        if said:
            assert isinstance(json.loads(said + ("" if prefix.ended else prefix.closing())), dict)
    try:
        meant = json.loads(text, strict=False)
    except ValueError:
        assert not prefix.ended or at < len(text)
    else:
        assert not prefix.ended or json.loads(said) == meant
