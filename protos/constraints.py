"""What a request may demand of its output beyond sampling: a grammar, and bounds on its thought."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from baton.protos.errors import GrammarError, InvalidRequestError

MAX_SOURCE_BYTES: Final = 1 << 20


class GrammarKind(StrEnum):
    """What `Grammar.source` is written in.

    JSON_OBJECT: nothing; any JSON object. JSON_SCHEMA: a schema, as JSON text. REGEX: a regular
    expression for the whole output. CHOICE: a JSON array of the strings to choose from.
    EBNF: rules `name ::= ...`, from `root` (GBNF). LARK: Lark rules, from `start`.
    STRUCTURAL_TAG: a structural tag (xgrammar's format), as JSON text.
    """

    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICE = "choice"
    EBNF = "ebnf"
    LARK = "lark"
    STRUCTURAL_TAG = "structural_tag"


class GrammarBackend(StrEnum):
    """Who enforces a grammar. AUTO: the one that honours all of it, which `Done` then names."""

    AUTO = "auto"
    XGRAMMAR = "xgrammar"
    GUIDANCE = "guidance"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """What the whole output (after its thought, if a `Thought` comes with it) must match.

    The output ends only where the grammar may end. Nothing of a grammar is ignored: what no
    backend enforces is refused with a GrammarError (400).

    whitespace: JSON may have white space between its tokens, up to 20 characters; False: none.
    param: the request's field that this came from (`response_format`, `tools`), named in errors.
    """

    kind: GrammarKind
    source: str = ""
    backend: GrammarBackend = GrammarBackend.AUTO
    whitespace: bool = True
    param: str = "response_format"

    def validate(self) -> None:
        """Raises GrammarError for what needs no backend to refuse."""
        num_bytes = len(self.source.encode())
        if num_bytes > MAX_SOURCE_BYTES:
            raise GrammarError(
                f"the {self.kind} has {num_bytes} bytes, but at most {MAX_SOURCE_BYTES} work",
                param=self.param,
            )
        if not self.source and self.kind is not GrammarKind.JSON_OBJECT:
            raise GrammarError(f"the {self.kind} is empty", param=self.param)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thought:
    """Where an output's thought begins and ends. A grammar holds from after the thought.

    end_ids: the tokens that end a thought.
    start_ids: the tokens that begin one; empty: none begins in the output.
    open: the prompt ends inside a thought.
    budget: most tokens of thought, all thoughts together (markers not counted; None: no limit).
        At the limit `close_ids` are written, whatever the model would have said.
    close_ids: how a thought over budget is closed; ends with `end_ids` (empty: just these).
    """

    end_ids: tuple[int, ...]
    start_ids: tuple[int, ...] = ()
    open: bool = False
    budget: int | None = None
    close_ids: tuple[int, ...] = ()

    def validate(self, vocab_size: int) -> None:
        """Raises InvalidRequestError naming the field."""
        if not self.end_ids:
            raise InvalidRequestError("a thought needs the tokens that end it", param="end_ids")
        if not self.open and not self.start_ids:
            raise InvalidRequestError(
                "the prompt opens no thought, and no start_ids say how one begins",
                param="start_ids",
            )
        if self.budget is not None and self.budget < 0:
            raise InvalidRequestError(
                f"the thinking budget is {self.budget}, but must be 0 or more",
                param="thinking_token_budget",
            )
        if self.close_ids and self.close_ids[-len(self.end_ids) :] != self.end_ids:
            raise InvalidRequestError(
                f"close_ids {self.close_ids} must end with end_ids {self.end_ids}",
                param="close_ids",
            )
        for name in ("end_ids", "start_ids", "close_ids"):
            for token_id in getattr(self, name):
                if not 0 <= token_id < vocab_size:
                    raise InvalidRequestError(
                        f"{name} holds token id {token_id}, but the model's ids are 0 to "
                        f"{vocab_size - 1}",
                        param=name,
                    )
