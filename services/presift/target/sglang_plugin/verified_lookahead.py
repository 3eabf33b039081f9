"""The beginning of a greedy answer, known before it is decoded.

The scoring request reads prompt and lookahead, so the target's own choice after the prompt and after each token of the
lookahead is known. As far as the lookahead equals these choices, the target would generate it itself, on the full KV.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import torch

from presift.target.sglang_plugin.ranks import ALONE, Ranks
from presift.target.sglang_plugin.transfers import HostCopy

# The logits of this many rows exist at a time, each as wide as the vocabulary.
_BLOCK_ROWS = 32

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class VerifiedLookahead:
    """The target's most likely tokens at the positions `first_row <= i < end_row`, whose next tokens are `tokens`.

    With tensor parallelism each rank knows those of its part of the vocabulary.
    """

    first_row: int
    tokens: tuple[int, ...]
    # float64[rows, 2] by the position of the first of them: chunks may split the rows.
    _choices: dict[int, HostCopy] = field(default_factory=dict)

    @property
    def end_row(self) -> int:
        return self.first_row + len(self.tokens)

    def reset(self) -> None:
        """Start over, because the prompt is read again."""
        self._choices.clear()

    def add(self, first: int, choices: torch.Tensor) -> None:
        """Add the largest logits and their tokens, float64[rows, 2], from position `first` on."""
        self._choices[first] = HostCopy(choices)

    def choices(self) -> list[tuple[float, int]]:
        """The largest logit and its token at each position from `first_row` on, up to the first that is missing."""
        found: list[tuple[float, int]] = []
        while (choices := self._choices.get(self.first_row + len(found))) is not None:
            found += [(logit, int(token)) for logit, token in choices.values.tolist()]
        return found


def accepted(tokens: tuple[int, ...], choices: Sequence[list[tuple[float, int]]]) -> tuple[int, ...]:
    """The longest beginning of the lookahead `tokens` that the target chose too, by the `choices` of all its ranks."""
    count = 0
    for expected, each in zip(tokens, zip(*choices, strict=False), strict=False):
        # Of equal logits the first token wins, as everywhere in SGLang.
        _, token = max(each, key=itemgetter(0))
        if token != expected:
            break
        count += 1
    return tokens[:count]


def most_likely(processor: Any, states: torch.Tensor, head: Any, metadata: Any, ranks: Ranks = ALONE) -> torch.Tensor:
    """float64[rows, 2]: the largest logits by SGLang's LogitsProcessor and their tokens; `states` [rows, width].

    With tensor parallelism those of this rank's part of the vocabulary. They are not gathered here: SGLang's buffer for
    that may still be read by another rank, and the other ranks would wait for one that fails.
    """
    is_divided = ranks.are_several and processor.do_tensor_parallel_all_gather
    with _not_gathered(processor) if is_divided else nullcontext():
        part = ranks.own if is_divided else None
        return torch.cat(
            [_largest(processor, block, head, metadata, part) for block in torch.split(states, _BLOCK_ROWS)]
        )


def _largest(processor: Any, states: torch.Tensor, head: Any, metadata: Any, part: int | None) -> torch.Tensor:
    """`most_likely` of one block. `part`: which part of the vocabulary is computed; None for all of it."""
    # The buffer is that of the logits which SGLang samples from.
    logits = processor._get_logits(states, head, metadata, use_logits_buffer=False)
    first = 0
    if part is not None:
        first = part * logits.shape[-1]
        # SGLang fills up the last parts behind the vocabulary.
        if first >= processor.vocab_size:
            return torch.tensor([[-torch.inf, 0.0]], dtype=torch.float64, device=logits.device).expand(len(logits), -1)
        logits = logits[:, : processor.vocab_size - first]
    places = logits.argmax(-1, keepdim=True)
    return torch.cat([logits.gather(-1, places).double(), (places + first).double()], dim=-1)


@contextmanager
def _not_gathered(processor: Any) -> Iterator[None]:
    """While SGLang computes logits, let each rank keep those of its part of the vocabulary."""
    processor.do_tensor_parallel_all_gather = False
    try:
        yield
    finally:
        processor.do_tensor_parallel_all_gather = True


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
