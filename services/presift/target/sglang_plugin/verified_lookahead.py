"""The beginning of a greedy answer, known before it is decoded.

The scoring request reads prompt and lookahead, so the target's own choice after the prompt and after each token of the
lookahead is known. As far as the lookahead equals these choices, the target would generate it itself, on the full KV.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch

from presift.target.sglang_plugin.transfers import HostCopy

# The logits of this many rows exist at a time, each as wide as the vocabulary.
_BLOCK_ROWS = 32

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class VerifiedLookahead:
    """The target's most likely tokens at the positions `first_row <= i < end_row`, whose next tokens are `tokens`."""

    first_row: int
    tokens: tuple[int, ...]
    # int64[rows] by the position of the first of them: chunks may split the rows.
    _choices: dict[int, HostCopy] = field(default_factory=dict)

    @property
    def end_row(self) -> int:
        return self.first_row + len(self.tokens)

    def reset(self) -> None:
        """Start over, because the prompt is read again."""
        self._choices.clear()

    def add(self, first: int, choices: torch.Tensor) -> None:
        """Add the most likely tokens, int64[rows], from position `first` on."""
        self._choices[first] = HostCopy(choices)

    def accepted(self) -> tuple[int, ...]:
        """The longest beginning of `tokens` that the target chose too."""
        count = 0
        while (choices := self._choices.get(self.first_row + count)) is not None:
            for choice in choices.values.tolist():
                if choice != self.tokens[count]:
                    return self.tokens[:count]
                count += 1
        return self.tokens[:count]


def most_likely(processor: Any, states: torch.Tensor, head: Any, metadata: Any) -> torch.Tensor:
    """int64[rows]: the most likely next tokens by SGLang's LogitsProcessor; `states` [rows, width]."""
    blocks = torch.split(states, _BLOCK_ROWS)
    # The buffer is that of the logits which SGLang samples from.
    each = [processor._get_logits(block, head, metadata, use_logits_buffer=False).argmax(-1) for block in blocks]
    return torch.cat(each)


def accept(request: Any, tokens: tuple[int, ...]) -> int:
    """Begin the answer of `request` with `tokens`, as if it had generated them; returns how many.

    It stops before a token that would end the answer, so that SGLang decodes at least one token and ends the answer
    itself.
    """
    if not _is_plain_greedy(request):
        return 0
    for count, token in enumerate(tokens):
        request.output_ids.append(token)
        request.update_finish_state()
        if request.finished():
            request.output_ids.pop()
            request.finished_reason = request.finished_len = None
            return count
    return len(tokens)


def _is_plain_greedy(request: Any) -> bool:
    """Whether each token of the answer is the one that the model finds most likely."""
    sampling = request.sampling_params
    is_changed = (
        sampling.logit_bias
        or sampling.min_new_tokens
        or sampling.presence_penalty
        or sampling.frequency_penalty
        or sampling.repetition_penalty != 1.0
    )
    has_grammar = sampling.json_schema or sampling.regex or sampling.ebnf or sampling.structural_tag
    # Log probabilities of tokens that are not decoded would be missing.
    return sampling.top_k == 1 and not (is_changed or has_grammar or request.return_logprob)
