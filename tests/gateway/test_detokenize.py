"""Streaming text equals decoding the whole, however the tokens are split."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gateway.serving import tokenizer
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import decoders, models, normalizers

from baton.gateway.detokenize import IncrementalText, TableText, WindowText
from baton.gateway.tokenizer import ModelFacts, Tokenizer
from baton.gateway.vocabulary import read_vocabulary

_IDS = st.lists(st.integers(0, 1023), max_size=40)
_CUTS = st.lists(st.integers(1, 5), min_size=1, max_size=5)


def _streamed(text: IncrementalText, ids: list[int], cuts: list[int]) -> list[str]:
    parts, at, i = [], 0, 0
    while at < len(ids):
        size = cuts[i % len(cuts)]
        parts.append(text.push(ids[at : at + size]))
        at, i = at + size, i + 1
    return [*parts, text.finish()]


@settings(max_examples=150, deadline=None)
@given(ids=_IDS, cuts=_CUTS, skip=st.booleans())
def test_any_tokens_in_any_split_equal_the_library(
    ids: list[int], cuts: list[int], skip: bool
) -> None:
    library = tokenizer()._backend.decode(ids, skip_special_tokens=skip)
    parts = _streamed(tokenizer().incremental_text(skip_special_tokens=skip), ids, cuts)
    assert "".join(parts) == library
    assert tokenizer().decode(ids, skip_special_tokens=skip) == library


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60), cuts=_CUTS)
def test_text_comes_back_and_no_character_is_ever_split(text: str, cuts: list[int]) -> None:
    parts = _streamed(tokenizer().incremental_text(), tokenizer().encode(text), cuts)
    assert "".join(parts) == tokenizer()._backend.decode(tokenizer().encode(text))
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in parts)


def _sentencepiece() -> HfTokenizer:
    """The shape of Llama 2's and Mistral's tokenizers: U+2581 for spaces, <0xNN> for rare bytes."""
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["\u2581", *"abcdefghijklmnopqrstuvwxyz,.!"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    backend = HfTokenizer(models.BPE(vocab, [], byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<s>"])
    return backend


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.sampled_from("abc ,é你🙂"), min_size=1, max_size=30), cuts=_CUTS)
def test_byte_fallback_vocabulary(text: str, cuts: list[int]) -> None:
    backend = _sentencepiece()
    own = Tokenizer(
        backend, chat_template=None, facts=ModelFacts(max_model_len=None, vocab_size=None)
    )
    assert isinstance(own.incremental_text(), TableText)
    ids = own.encode(text)
    parts = _streamed(own.incremental_text(), ids, cuts)
    assert "".join(parts) == backend.decode(ids) == text
    assert not any("\ufffd" in part for part in parts)


def test_other_decoders_use_windows() -> None:
    words = ["[UNK]", "play", "##ing", "##s", "well", "."]
    backend = HfTokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    assert not read_vocabulary(backend).exact
    ids = [1, 2, 4, 1, 3, 4, 5]
    for size in (1, 2, 3):
        parts = _streamed(WindowText(backend), ids, [size])
        assert "".join(parts) == backend.decode(ids)


def test_ids_outside_the_vocabulary_are_silent() -> None:
    assert tokenizer().decode([*tokenizer().encode("ab"), 5000]) == "ab"
    assert tokenizer().token_bytes(5000) == b""


def test_parts_of_characters_have_a_printable_name() -> None:
    ids = tokenizer().encode("你")
    assert b"".join(tokenizer().token_bytes(i) for i in ids) == "你".encode()
    assert tokenizer().token_text(ids[0]) == "bytes:\\xe4"


@pytest.mark.parametrize("skip", [True, False])
def test_special_tokens(skip: bool) -> None:
    ids = tokenizer().encode("<|im_start|>user\n")
    assert ids[0] == 1
    expected = "user\n" if skip else "<|im_start|>user\n"
    assert tokenizer().decode(ids, skip_special_tokens=skip) == expected
