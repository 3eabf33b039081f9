"""The answers of /v1/completions."""

from __future__ import annotations

from typing import Any

from presift.core.answer import TokenLogprob
from presift.orchestrator.api.http.answers import Answer
from presift.orchestrator.api.http.completions import Completion, View
from presift.orchestrator.api.http.logprobs import TextLogprobs
from presift.orchestrator.pipeline.events import Delta
from presift.orchestrator.prompt.token_texts import TokenTexts


class TextCompletion(Completion):
    """Texts that continue a prompt; with `echo` they begin with it."""

    whole_kind, chunk_kind, id_prefix = "text_completion", "text_completion", "cmpl-"

    def __init__(self, view: View, texts: TokenTexts) -> None:
        super().__init__(view, texts)
        self._pieces: dict[int, TextLogprobs] = {}

    def _content(self, number: int, answer: Answer) -> dict[str, Any]:
        prompt = self.answers.prompt_of(number).text if self.view.echo else ""
        if self.view.no_answer:
            return {"text": prompt, "logprobs": self._logprobs(number, self._prompt_logprobs(number))}
        logprobs = [*self._prompt_logprobs(number), *answer.logprobs]
        return {"text": prompt + "".join(answer.text), "logprobs": self._logprobs(number, logprobs)}

    def _delta(self, number: int, delta: Delta, *, is_first: bool) -> dict[str, Any]:
        prompt = self.answers.prompt_of(number).text if self.view.echo and is_first else ""
        return {"text": prompt + delta.text, "logprobs": self._logprobs(number, delta.logprobs)}

    def _prompt_logprobs(self, number: int) -> tuple[TokenLogprob, ...]:
        """Of several answers only the first has them: they are the same."""
        first = self.answers.first_of(number).report
        return first.usage.prompt_logprobs if self.view.prompt_logprobs and first is not None else ()

    def _logprobs(self, number: int, logprobs: Any) -> dict[str, Any] | None:
        if not self.view.logprobs:
            return None
        known = self._pieces.setdefault(number, TextLogprobs(self.texts, shows_special=self.view.special_tokens))
        return known.piece(logprobs)
