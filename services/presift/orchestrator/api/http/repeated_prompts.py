"""How much a response may repeat of its prompts: with `echo` or the prompt's token ids, each of `n` choices has all."""

from __future__ import annotations

from collections.abc import Iterable

from presift.core.errors import InvalidRequest
from presift.orchestrator.api.http.answers import ReadPrompt
from presift.orchestrator.api.http.completions import View

# Bytes of memory that the prompts take in all choices while a response is made: 128 choices with the text of 620 prompt
# tokens and 20 alternatives to each, or with the ids of 16,384. One choice is not limited: it shows its prompt once.
MAX_REPEATED_BYTES = 256 * 2**20

# In Python's objects and as JSON, at most (measured): a character, a token id, a token's log probability, and one of
# its alternatives.
_CHARACTER_BYTES, _ID_BYTES, _LOGPROB_BYTES, _TOP_BYTES = 10, 128, 448, 144


def bytes_in_choice(view: View, prompt: ReadPrompt, top_logprobs: int) -> int:
    """The memory of a prompt, once it was read, in one choice; 0 before, and if choices do not show it."""
    if prompt.token_ids is None:
        return 0
    token_bytes = _ID_BYTES if view.prompt_ids else 0
    if view.prompt_logprobs:
        token_bytes += _LOGPROB_BYTES + _TOP_BYTES * top_logprobs
    return token_bytes * prompt.token_ids.size + (_CHARACTER_BYTES * len(prompt.text) if view.echo else 0)


def check_repeated(view: View, choice_bytes: int, prompts: Iterable[ReadPrompt]) -> None:
    """Raises InvalidRequest if several choices repeat more than MAX_REPEATED_BYTES, at `choice_bytes` bytes each."""
    if view.choices == 1 or view.choices * choice_bytes <= MAX_REPEATED_BYTES:
        return
    parts = {"text": view.echo, "token ids": view.prompt_ids, "log probabilities": view.prompt_logprobs}
    shown = ", ".join(name for name, is_shown in parts.items() if is_shown)
    tokens = sum(prompt.token_ids.size for prompt in prompts if prompt.token_ids is not None)
    most = max(1, MAX_REPEATED_BYTES // choice_bytes)
    raise InvalidRequest("choices", view.choices, f"at most {most}: each shows {tokens} tokens of the prompt ({shown})")
