"""Formats by name, and the ones that a model's chat template asks for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from baton.gateway.parsers.formats import ReasoningFormat, ToolFormat
from baton.gateway.parsers.reasoning_formats import REASONING_FORMATS
from baton.gateway.parsers.tool_formats import TOOL_FORMATS
from baton.protos.errors import ConfigError

F = TypeVar("F", ToolFormat, ReasoningFormat)


class Detected(NamedTuple):
    """The formats' first names; None where nothing speaks for one."""

    tool: str | None
    reasoning: str | None


class ParserRegistry:
    """Formats by each of their names. Immutable: `with_formats` makes another."""

    __slots__ = ("reasoning_formats", "tool_formats")

    def __init__(
        self,
        tool_formats: Sequence[ToolFormat] = TOOL_FORMATS,
        reasoning_formats: Sequence[ReasoningFormat] = REASONING_FORMATS,
    ) -> None:
        self.tool_formats = tuple(tool_formats)
        self.reasoning_formats = tuple(reasoning_formats)

    def with_formats(self, added: Iterable[ToolFormat | ReasoningFormat]) -> ParserRegistry:
        """These and the added ones, which win where names or templates fit both."""
        formats = tuple(added)
        return ParserRegistry(
            (*(f for f in formats if isinstance(f, ToolFormat)), *self.tool_formats),
            (*(f for f in formats if isinstance(f, ReasoningFormat)), *self.reasoning_formats),
        )

    def tool(self, name: str) -> ToolFormat:
        """Raises ConfigError, with the names that are known."""
        return _named(name, self.tool_formats, "tool_call_parser")

    def reasoning(self, name: str) -> ReasoningFormat:
        """Raises ConfigError, with the names that are known."""
        return _named(name, self.reasoning_formats, "reasoning_parser")

    def detect(self, model_type: str | None, chat_template: str | None) -> Detected:
        """The formats for a model whose configuration and chat template are these.

        A format whose marks are all in the template fits; one that also names the model type goes
        first, then the order of the formats decides. Without marks, only the model type speaks.
        """
        return Detected(
            _fitting(self.tool_formats, model_type, chat_template),
            _fitting(self.reasoning_formats, model_type, chat_template),
        )


def _named(name: str, formats: Sequence[F], param: str) -> F:
    for form in formats:
        if name in form.names:
            return form
    known = ", ".join(sorted(n for form in formats for n in form.names))
    kind = param.removesuffix("_parser").replace("_", " ")
    raise ConfigError(f"there is no {kind} parser {name!r}: use one of {known}", param=param)


def _fitting(formats: Sequence[F], model_type: str | None, template: str | None) -> str | None:
    marked = [f for f in formats if f.template_marks and _has_marks(f, template)]
    typed = [f for f in formats if model_type in f.model_types]
    for form in typed:
        if form in marked or template is None or not form.template_marks:
            return form.names[0]
    return marked[0].names[0] if marked else None


def _has_marks(form: ToolFormat | ReasoningFormat, template: str | None) -> bool:
    return template is not None and all(mark in template for mark in form.template_marks)
