"""How much a response may repeat of its prompts: with `echo` or the prompt's token ids, each of `n` choices has all."""

from __future__ import annotations

from collections.abc import Iterable

from presift.core.errors import InvalidRequest
from presift.orchestrator.api.http.answers import ReadPrompt
from presift.orchestrator.api.http.completions import View

# Bytes of memory that the prompts take in all choices while a response is made: 128 choices with 20 alternatives to
# each of 630 prompt tokens, or with the ids of 16,384. One choice is not limited: it shows its prompt once.
MAX_REPEATED_BYTES = 256 * 2**20

# In Python's objects and as JSON, at most (measured): a character, a token id, a token's log probability, and one of
# its alternatives.
_CHARACTER_BYTES, _ID_BYTES, _LOGPROB_BYTES, _TOP_BYTES = 10, 128, 448, 144


def bytes_in_choice(view: View, prompt: ReadPrompt, top_logprobs: int) -> int:
    """The memory of a prompt, once it was read, in one choice; 0 before, and if choices do not show it."""
    if prompt.token_ids is None:
        return 0
    of_token = _ID_BYTES if view.prompt_ids else 0
    if view.prompt_logprobs:
        of_token += _LOGPROB_BYTES + _TOP_BYTES * top_logprobs
    return of_token * prompt.token_ids.size + (_CHARACTER_BYTES * len(prompt.text) if view.echo else 0)


def check_repeated(view: View, of_choice: int, prompts: Iterable[ReadPrompt]) -> None:
    """Raises InvalidRequest if several choices repeat more than MAX_REPEATED_BYTES, at `of_choice` bytes each."""
    if view.choices == 1 or view.choices * of_choice <= MAX_REPEATED_BYTES:
        return
    parts = {"text": view.echo, "token ids": view.prompt_ids, "log probabilities": view.prompt_logprobs}
    shown = ", ".join(name for name, is_shown in parts.items() if is_shown)
    tokens = sum(prompt.token_ids.size for prompt in prompts if prompt.token_ids is not None)
    most = max(1, MAX_REPEATED_BYTES // of_choice)
    raise InvalidRequest("choices", view.choices, f"at most {most}: each shows {tokens} tokens of the prompt ({shown})")
