"""A model folder's text side: tokenizer.json, the chat template, ids to text. No transformers, no
torch.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as HfTokenizer

from baton.gateway.chat_template import ChatTemplate, load_chat_template
from baton.gateway.detokenize import IncrementalText, TableText, WindowText
from baton.gateway.vocabulary import Vocabulary, read_vocabulary
from baton.protos.errors import InvalidRequestError, ModelLoadError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What config.json says that a front needs; None where it says nothing."""

    max_model_len: int | None
    vocab_size: int | None
    model_type: str | None = None


class Tokenizer:
    """Text to ids and back. Stateless after construction; every method may run on any thread."""

    def __init__(
        self, backend: HfTokenizer, *, chat_template: ChatTemplate | None, facts: ModelFacts
    ) -> None:
        self._backend = backend
        self._vocabulary: Vocabulary = read_vocabulary(backend)
        self.chat_template = chat_template
        self.facts = facts

    @property
    def vocab_size(self) -> int:
        """Ids are in [0, vocab_size): the model's vocabulary, which may be padded."""
        return self.facts.vocab_size or len(self._vocabulary.all)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. Releases the GIL."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Text of the whole sequence; the same as pushing it through `incremental_text`."""
        text = self.incremental_text(skip_special_tokens=skip_special_tokens)
        return text.push(token_ids) + text.finish()

    def showing(self, markers: Sequence[str]) -> Tokenizer:
        """The same, but text keeps those special tokens that are part of a marker."""
        other = copy.copy(self)
        other._vocabulary = self._vocabulary.showing(markers)
        return other

    def marker_ids(self, marker: str) -> tuple[int, ...]:
        """The one way to write `marker` in tokens; empty if its ends are not tokens of their own,
        for then a model may write it in several ways.
        """
        ids = self.encode(marker, add_special_tokens=False) if marker else []
        added = self._vocabulary.added
        return tuple(ids) if ids and ids[0] in added and ids[-1] in added else ()

    def split_tokens(self, text: str) -> list[str | int]:
        """`text` with the ids of added tokens in place of their literal text."""
        ids = self._vocabulary.added_ids
        pieces = self._vocabulary.added_pattern.split(text) if text else []
        return [ids.get(piece, piece) for piece in pieces if piece]

    def incremental_text(self, *, skip_special_tokens: bool = True) -> IncrementalText:
        """A fresh decoder for one sequence."""
        table = self._vocabulary
        if not table.exact:
            hidden = table.special if skip_special_tokens else frozenset()
            return WindowText(self._backend, hidden=hidden)
        pieces = table.visible if skip_special_tokens else table.all
        return TableText(pieces, strip_left=table.strip_left)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, literal text for special ones; empty for an id that is
        padding.
        """
        pieces = self._vocabulary.all
        return pieces[token_id] if 0 <= token_id < len(pieces) else b""

    def token_text(self, token_id: int) -> str:
        """A printable name: its text, or `bytes:\\xNN...` where it is only a part of a
        character.
        """
        raw = self.token_bytes(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool = True,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The chat as the model's prompt. InvalidRequestError if the model has no template or it
        refuses.
        """
        if self.chat_template is None:
            raise InvalidRequestError(
                "this model has no chat template: use /v1/completions with a prompt",
                param="messages",
            )
        return self.chat_template.render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            template_kwargs=template_kwargs,
        )


def load_tokenizer(model_dir: str) -> Tokenizer:
    """Reads tokenizer.json, tokenizer_config.json, config.json, chat template. ModelLoadError names
    the file.
    """
    folder = Path(model_dir)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelLoadError(
            f"{path} does not exist: a model folder needs a tokenizer.json", param="model_dir"
        )
    try:
        backend = HfTokenizer.from_file(str(path))
    # The library raises bare Exception for a file that it cannot read.
    except Exception as error:
        raise ModelLoadError(f"{path} cannot be read: {error}", param="model_dir") from error
    backend.no_truncation()
    backend.no_padding()
    config = _read_json(folder / "config.json")
    text_config = config.get("text_config", config)
    return Tokenizer(
        backend,
        chat_template=load_chat_template(folder, _read_json(folder / "tokenizer_config.json")),
        facts=ModelFacts(
            max_model_len=text_config.get("max_position_embeddings"),
            vocab_size=text_config.get("vocab_size"),
            model_type=config.get("model_type"),
        ),
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ModelLoadError(f"{path} is not JSON: {error}", param=path.name) from error
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path} must hold a JSON object", param=path.name)
    return content
