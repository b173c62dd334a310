"""Writes docs/tools.md from the formats that the code declares: `python docs/generate_tools.py`."""

# The page's own lines are as long as those of the other pages.
# ruff: noqa: E501

from __future__ import annotations

from pathlib import Path

from baton.gateway.parsers import formats
from baton.gateway.parsers.events import Parsed, collect
from baton.gateway.parsers.formats import ReasoningFormat, ToolFormat
from baton.gateway.parsers.json_stream import COMMIT_CHARS
from baton.gateway.parsers.reader import MAX_REREAD_CHARS
from baton.gateway.parsers.reasoning_formats import REASONING_FORMATS
from baton.gateway.parsers.tool_formats import TOOL_FORMATS

TARGET = Path(__file__).parent / "tools.md"

HEAD = """# Tool calls and reasoning

<!-- Made by docs/generate_tools.py from gateway/parsers; change the formats there. -->

Models write tool calls and thoughts as text, each family in its own way. A parser takes them out while the text arrives:
content, thoughts and calls come out as they become certain. However a text is cut into tokens and pieces, the result is the same, and nothing that a model writes is an error: what is no valid call is content.

Baton knows {num_tools} formats of tool calls under {num_tool_names} names and {num_reasoning} formats of thoughts under
{num_reasoning_names}, the names being those that users of vLLM and SGLang know.

## In chat answers
`baton serve` chooses the formats by the model's chat template and `model_type`; `--tool-call-parser NAME` and
`--reasoning-parser NAME` say otherwise, and `none` turns one off. With them, `POST /v1/chat/completions` and gRPC's chats give

* `tool_calls` in messages and deltas, and the finish reason `tool_calls` (also where `tool_choice` named the function);
* `reasoning_content`, and the same as `reasoning`, in messages and deltas; line breaks around a thought are left out.
  `usage.completion_tokens_details.reasoning_tokens` counts its tokens, `include_reasoning: false` leaves it out.

Special tokens that a format's markers are made of stay in the text for the parser; a client never sees them.

**Tools.** The template is shown `tools` without `strict`; `content: null` and arguments (JSON text or an object) come
back in the shape in which the template writes them. `tool_choice`:

| `tool_choice` | tools shown | the answer |
| --- | --- | --- |
| `auto` (default) | all | text, calls or both; arguments of functions with `strict: true` follow their schema where the format has a *trigger* (see each format) |
| `none` | none | text; calls that the model writes all the same are dropped, where a marker announces them and no form of the answer is asked for |
| `required` | all | one call or more, kept valid by a grammar; only one with `parallel_tool_calls: false` |
| a named function | all | as `required`, of that function |
| `allowed_tools` | mode `auto`: those; `required`: all | as `auto` or `required`, of those |

With `parallel_tool_calls: false` and `auto`, calls after the first are dropped. A required call is written in the model's own
format where arguments are plain JSON there, else as a JSON list `[{{"name": ..., "arguments": ...}}]`, which Baton reads directly.

**Thinking.** `chat_template_kwargs` (such as `enable_thinking`) go to the template. `reasoning_effort` does, too, under that name,
and sets `enable_thinking` and `thinking` (false for `none`) unless the kwargs do. Whether a thought is open is seen from the
prompt's end. With `force_nonempty_content` among the kwargs (as NVIDIA's and IBM's models have it), an answer of nothing but a thought
is given as content; the thought is streamed late then. `thinking_token_budget` (or `thinking_budget`) closes the thought after so many tokens; it needs a model whose
markers are tokens of their own.

**Forms of the answer.** A grammar (`response_format`, `guided_json`, ...; see [gateway.md](gateway.md)) holds after the thought. Beside tools
with `auto`, the answer is either calls or of that form (a JSON form, `guided_regex` or `guided_choice`; other grammars are refused
there); with `required` or a named function it is calls, and the form does not bear on them. Calls that a grammar writes are
compact JSON, and their schemas are enforced by `guidance`, as a schema alone is.

## What parsers do
* Arguments are a JSON object (of PLaMo 3, what was written of one where the answer was cut off). Formats that write values as
  bare text are typed by the tool's JSON schema.
* White space that only parts calls from each other is dropped; other text around calls is content, but for the formats
  below whose calls come last, as vLLM reads them.
* A call is passed on when it is complete, or, once its JSON or a text in it is longer than {commit} characters, while it is
  written. What has to be held for longer than a million characters is content. So is the rest of an answer in which
  {reread} characters were read again, all in all, because what began like calls were none: work grows with an answer's length,
  whatever it says.
* `reasoning` formats need to know whether the prompt opened the thought: they are told how the prompt ended.

## Trying a parser
```
echo '{{"id": 1, "text": "<tool_call>{{\\"name\\": \\"f\\", \\"arguments\\": {{}}}}</tool_call>"}}' | baton tools parse --parser hermes --chunk 3
echo '{{"id": 1, "text": "<think>hm</think>yes"}}' | baton reasoning parse --parser qwen3
```
Each line in is a JSON object with `id`, `text`, and if there are any, `tools` (as in a chat request),
`tool_choice` (`none` drops calls), `chat_template_kwargs`, `prompt` (how the rendered prompt ended) and `special_tokens`: what of
them is no marker of the format is left out of the text, as it is in serving; a line that has none gets `["<bos>", "<eos>"]`. Each
line out has `id`, `content`, `tool_calls` (`name`, and `arguments` as JSON text) and, if there is one, `reasoning`. `--chunk N`
feeds the text in pieces of N characters; `--reasoning-parser NAME` takes thoughts out first.

## A format of your own
A format is a `ToolFormat` or `ReasoningFormat` (`baton.gateway.parsers.formats`) over one of the machines, which are
frozen dataclasses: `JsonCalls`, `XmlCalls`, `SectionCalls`, `NamedJson`, `PythonCalls`, `BodyCalls`, `Channels`, `Blocks`,
`Xtml`, `ThoughtTags`. Anything with `markers` and `run(reader, out, tools)` is a machine, too.
```python
from baton.gateway.parsers.formats import ToolFormat
from baton.gateway.parsers.json_calls import JsonCalls

ours = ToolFormat(
    names=("ours",),
    machine=JsonCalls(starts=("<call>",), ends=("</call>",)),
    example='<call>{{"name": "f", "arguments": {{"city": "Paris"}}}}</call>',
    models="ours",
)
```
Pass the file with `--tool-parser-plugin FILE`, or install a package with the entry point groups `baton.tool_parsers` and
`baton.reasoning_parsers` that name such objects. Formats that users bring win over Baton's own of the same name.
"""


def document() -> str:
    """The whole page."""
    head = HEAD.format(
        commit=COMMIT_CHARS,
        reread=MAX_REREAD_CHARS,
        num_tools=len(TOOL_FORMATS),
        num_tool_names=sum(len(form.names) for form in TOOL_FORMATS),
        num_reasoning=len(REASONING_FORMATS),
        num_reasoning_names=sum(len(form.names) for form in REASONING_FORMATS),
    )
    tools = sorted(TOOL_FORMATS, key=lambda form: form.names[0])
    thoughts = sorted(REASONING_FORMATS, key=lambda form: form.names[0])
    parts = [head, "## Formats of tool calls\n", *map(_section, tools)]
    parts += ["## Formats of thoughts\n", *map(_section, thoughts)]
    return "\n".join(parts)


def _section(form: ToolFormat | ReasoningFormat) -> str:
    names = ", ".join(f"`{name}`" for name in form.names)
    machine = type(form.machine).__name__
    lines = [f"### {names}", f"{form.models}. Machine: `{machine}`.", "````", form.example, "````"]
    return "\n".join([*lines, _found(form), *_dropped(form), *_required(form), ""])


def _dropped(form: ToolFormat | ReasoningFormat) -> list[str]:
    """What of an answer is not passed on."""
    if isinstance(form, ToolFormat):
        return ["Calls come last: text after one is dropped."] if form.calls_last else []
    return [] if form.calls is None else ["`baton reasoning parse` drops its models' calls."]


def _required(form: ToolFormat | ReasoningFormat) -> list[str]:
    """How a call is required of the model."""
    if not isinstance(form, ToolFormat):
        return []
    if form.frame is None:
        return ["Required calls: as a JSON list."]
    several = "" if form.frame.several else ", one at a time"
    trigger = f" Trigger: `{form.frame.trigger}`." if form.frame.trigger else ""
    return [f"Required calls: in this form{several}.{trigger}"]


def _found(form: ToolFormat | ReasoningFormat) -> str:
    """What the parser itself makes of the example."""
    if isinstance(form, ToolFormat):
        parsed = _parsed(formats.tool_parser(form), form.example)
        calls = "; ".join(f"`{call.name}({call.arguments})`" for call in parsed.tool_calls)
        return f"Calls {calls}."
    parsed = _parsed(formats.reasoning_parser(form, thinking=True), form.example)
    return f"Thought: {_quoted(parsed.reasoning)}; answer: {_quoted(parsed.content)}."


def _parsed(parser: formats.StreamParser, text: str) -> Parsed:
    return collect([*parser.feed(text), *parser.finish()])


def _quoted(text: str) -> str:
    return f"`{text.strip()}`" if text.strip() else "none"


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
