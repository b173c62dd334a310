"""A model's tokenizer, in the form that each matching library wants it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from baton.protos.errors import GrammarError

if TYPE_CHECKING:
    from baton.engine.grammar.guidance_backend import GuidanceVocabulary
    from baton.engine.grammar.xgrammar_backend import XgrammarVocabulary


class Vocabulary:
    """Made with the engine; each library's part is loaded with its first grammar, once.

    vocab_size: the model's, which is the width of masks and may exceed the tokenizer's.
    """

    def __init__(self, model_dir: str, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self.vocab_size = vocab_size
        self.eos_token_ids = eos_token_ids
        self.path = Path(model_dir) / "tokenizer.json"
        # One each: loading xgrammar takes seconds, which llguidance's grammars do not wait for.
        self._guidance_lock = threading.Lock()
        self._xgrammar_lock = threading.Lock()
        self._guidance: GuidanceVocabulary | None = None
        self._xgrammar: XgrammarVocabulary | None = None

    @property
    def guidance(self) -> GuidanceVocabulary:
        """llguidance's. Raises GrammarError if this model cannot have grammars."""
        from baton.engine.grammar.guidance_backend import GuidanceVocabulary

        with self._guidance_lock:
            if self._guidance is None:
                self._check()
                self._guidance = GuidanceVocabulary.of(
                    self.path, self.vocab_size, self.eos_token_ids
                )
            return self._guidance

    @property
    def xgrammar(self) -> XgrammarVocabulary:
        """xgrammar's, with its compiling process. Raises GrammarError as above."""
        with self._xgrammar_lock:
            from baton.engine.grammar.xgrammar_backend import XgrammarVocabulary

            if self._xgrammar is None:
                self._check()
                self._xgrammar = XgrammarVocabulary(self.path, self.vocab_size, self.eos_token_ids)
            return self._xgrammar

    def close(self) -> None:
        """Ends the compiling process, if there is one."""
        if self._xgrammar is not None:
            self._xgrammar.close()

    def _check(self) -> None:
        if not self.path.exists():
            raise GrammarError("this model has no tokenizer.json, which a grammar needs")
        if not self.eos_token_ids:
            raise GrammarError("this model names no eos token, so no grammar could end")
