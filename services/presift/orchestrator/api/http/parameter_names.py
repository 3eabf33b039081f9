"""The parameters of an HTTP request behind the fields of the domain's request, so that errors name what was sent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_NUMBERED = re.compile(r"prompt\.chat\.messages(\[\d+\])")


@dataclass(frozen=True, slots=True)
class ParameterNames:
    """The spellings that one request uses. A chat has no `prompt`, `max_tokens` has a newer name, and `sampling` has
    those of other fields of Sampling whose parameter has another name: field -> parameter."""

    prompt: str = "prompt"
    max_new_tokens: str = "max_tokens"
    sampling: Mapping[str, str] = field(default_factory=dict)

    def parameter(self, field: str, message: str = "messages") -> str:
        """The parameter for a domain field. `message` is the place of the chat message, if it is known and `field` has
        no number: `messages[3]`. Fields that have no other name keep their own."""
        if field.startswith("sampling.") and (known := self.sampling.get(field.removeprefix("sampling."))) is not None:
            return known
        if (numbered := _NUMBERED.match(field)) is not None:
            message, field = f"messages{numbered[1]}", f"prompt.chat.messages{field[numbered.end() :]}"
        for prefix, parameter in self._table(message):
            if _is_within(field, prefix):
                return parameter + field.removeprefix(prefix)
        return field

    def _table(self, message: str) -> tuple[tuple[str, str], ...]:
        """Field prefix -> parameter prefix; the first match counts."""
        return (
            ("prompt.chat.messages.tool_calls_json", f"{message}.tool_calls"),
            ("prompt.chat.messages.parts", f"{message}.content"),
            ("prompt.chat.messages", message),
            ("prompt.chat.tools_json", "tools"),
            ("prompt.chat.template_kwargs_json", "chat_template_kwargs"),
            ("prompt.chat.continue_final_message", "continue_final_message"),
            ("prompt.chat", "messages"),
            ("prompt.text", self.prompt),
            ("prompt.token_ids", self.prompt),
            ("prompt.protected_spans", "presift.protected_spans"),
            ("prompt", self.prompt),
            ("token_ids", self.prompt),
            ("protected_spans", "presift.protected_spans"),
            ("sampling.max_new_tokens", self.max_new_tokens),
            ("sampling.", ""),
            ("choices", "n"),
            ("tool_function", "tool_choice.function.name"),
            ("format.tools_json", "tools"),
            ("single_tool_call", "parallel_tool_calls"),
            ("raw_text", "separate_reasoning"),
            ("budget", "presift.budget"),
            ("kv.", "presift.kv."),
            ("route", "presift.route"),
            ("span_per_token", "presift.explain.span_per_token"),
            ("include_kv_mask", "presift.explain.include_kv_mask"),
        )


def _is_within(field: str, prefix: str) -> bool:
    """Whether the prefix names `field` or a whole of which it is a part: `prompt.text`, but not `prompt_logprobs`."""
    return field.startswith(prefix) and (prefix.endswith(".") or field[len(prefix) : len(prefix) + 1] in ("", ".", "["))
