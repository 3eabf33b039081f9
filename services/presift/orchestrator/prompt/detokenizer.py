"""Streaming detokenizer: emits whole characters only, and nothing from a stop string on."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class Detokenizer:
    """The text of one answer. Without a tokenizer (`backend` None) all text is empty.

    `keeps_special`: special tokens are part of the text.
    """

    def __init__(self, backend: Tokenizer | None, stop: Sequence[str] = (), *, keeps_special: bool = False) -> None:
        self._backend = backend
        self._stream = DecodeStream(skip_special_tokens=not keeps_special)
        self._stop = tuple(stop)
        self._held = ""
        self._stopped = False

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that can be emitted after `token_ids`. A possible beginning of a stop string is held back."""
        if self._backend is None or self._stopped:
            return ""
        for token_id in token_ids:
            self._held += self._stream.step(self._backend, token_id) or ""
        return self._release(final=False)

    def finish(self) -> str:
        """The text that was held back, at the end of the answer."""
        return "" if self._stopped else self._release(final=True)

    def _release(self, *, final: bool) -> str:
        hit = min((at for at in map(self._held.find, self._stop) if at >= 0), default=-1)
        if hit >= 0:
            self._stopped = True
            return self._held[:hit]
        keep = 0 if final else max((_overlap(self._held, stop) for stop in self._stop), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
