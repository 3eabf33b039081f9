"""The parameters of an HTTP request behind the fields of the domain's request, so that errors name what was sent."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ParameterNames:
    """The spellings that one request uses. A chat has no `prompt`, and `max_tokens` has a newer name."""

    prompt: str = "prompt"
    max_new_tokens: str = "max_tokens"

    def parameter(self, field: str, message: str = "messages") -> str:
        """The parameter for a domain field. `message` is the place of the chat message, if it is known:
        `messages[3]`. Fields that have no other name keep their own."""
        for prefix, parameter in self._table(message):
            if field.startswith(prefix):
                return parameter + field.removeprefix(prefix)
        return field

    def _table(self, message: str) -> tuple[tuple[str, str], ...]:
        """Field prefix -> parameter prefix; the first match counts."""
        return (
            ("prompt.chat.messages.tool_calls_json", f"{message}.tool_calls"),
            ("prompt.chat.messages.parts", f"{message}.content"),
            ("prompt.chat.messages", message),
            ("prompt.chat.tools_json", "tools"),
            ("prompt.chat", "messages"),
            ("prompt.text", self.prompt),
            ("prompt.token_ids", self.prompt),
            ("prompt.protected_spans", "presift.protected_spans"),
            ("prompt", self.prompt),
            ("token_ids", self.prompt),
            ("protected_spans", "presift.protected_spans"),
            ("sampling.max_new_tokens", self.max_new_tokens),
            ("sampling.top_k", "presift.sampling.top_k"),
            ("sampling.stop_token_ids", "presift.sampling.stop_token_ids"),
            ("sampling.ignore_eos", "presift.sampling.ignore_eos"),
            ("sampling.", ""),
            ("budget", "presift.budget"),
            ("kv.", "presift.kv."),
            ("route", "presift.route"),
            ("span_per_token", "presift.explain.span_per_token"),
        )
