"""Log probabilities as OpenAI's two endpoints have them."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Any

from presift.core.answer import TokenLogprob
from presift.orchestrator.prompt.token_texts import TokenTexts

# JSON has no minus infinity: OpenAI's value for a token that is not possible.
_LEAST = -9999.0


def chat_logprobs(tokens: Iterable[TokenLogprob], texts: TokenTexts) -> dict[str, Any]:
    """`choices[].logprobs` of a chat."""
    return {"content": [_with_alternatives(token, texts) for token in tokens], "refusal": None}


def _with_alternatives(token: TokenLogprob, texts: TokenTexts) -> dict[str, Any]:
    top = [_one(token_id, logprob, texts) for token_id, logprob in token.top]
    return _one(token.token_id, token.logprob, texts) | {"top_logprobs": top}


def _one(token_id: int, logprob: float | None, texts: TokenTexts) -> dict[str, Any]:
    value = _LEAST if logprob is None else max(_LEAST, logprob)
    return {"token": texts.text(token_id), "logprob": value, "bytes": list(texts.raw(token_id))}


class TextLogprobs:
    """`choices[].logprobs` of a completion, in one or more pieces. `shows_special`: special tokens are in the text."""

    def __init__(self, texts: TokenTexts, *, shows_special: bool) -> None:
        self._texts = texts
        self._shows_special = shows_special
        self._offset = 0
        # Characters are counted, and one may come in several tokens.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def piece(self, tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
        """The next tokens."""
        columns: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in tokens:
            columns["tokens"].append(self._texts.key(token.token_id))
            columns["token_logprobs"].append(None if token.logprob is None else max(_LEAST, token.logprob))
            columns["top_logprobs"].append(self._top(token))
            columns["text_offset"].append(self._offset)
            if self._shows_special or not self._texts.is_special(token.token_id):
                self._offset += len(self._decoder.decode(self._texts.raw(token.token_id)))
        return columns

    def _top(self, token: TokenLogprob) -> dict[str, float] | None:
        """A prompt's first token has no alternatives. Two tokens of one text: the likelier counts."""
        if token.logprob is None:
            return None
        found: dict[str, float] = {}
        for token_id, logprob in token.top:
            found.setdefault(self._texts.key(token_id), max(_LEAST, logprob))
        return found
