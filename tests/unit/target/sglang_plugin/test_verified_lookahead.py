"""Which tokens of a lookahead the target chose too, and which of them a request may begin its answer with."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from presift.target.sglang_plugin import verified_lookahead  # noqa: E402 - the plugin needs torch
from presift.target.sglang_plugin.ranks import Ranks  # noqa: E402
from presift.target.sglang_plugin.verified_lookahead import (  # noqa: E402
    VerifiedLookahead,
    accept,
    accepted,
    most_likely,
)

from .fakes import on_ranks  # noqa: E402

FIRST, TOKENS = 9, (5, 6, 7, 8)
PLAIN: dict[str, Any] = {
    "top_k": 1,
    "logit_bias": None,
    "min_new_tokens": 0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "json_schema": None,
    "regex": None,
    "ebnf": None,
    "structural_tag": None,
}


@dataclass(eq=False)
class Request:
    """A request of SGLang's that ends at the token `stop` or after `most` tokens."""

    sampling: dict[str, Any] = field(default_factory=dict)
    stop: int = -1
    most: int = 100
    return_logprob: bool = False
    output_ids: array[int] = field(default_factory=lambda: array("q"))
    finished_reason: Any = None
    finished_len: int | None = None

    @property
    def sampling_params(self) -> Any:
        return SimpleNamespace(**PLAIN | self.sampling)

    def update_finish_state(self) -> None:
        if self.output_ids[-1] == self.stop or len(self.output_ids) >= self.most:
            self.finished_reason, self.finished_len = "ended", len(self.output_ids)

    def finished(self) -> bool:
        return self.finished_reason is not None


def rows(*tokens: int) -> torch.Tensor:
    """Tokens as the largest logits of their rows."""
    return torch.tensor([[1.0, token] for token in tokens], dtype=torch.float64)


@pytest.mark.parametrize(
    ("chosen", "count"),
    [([5, 6, 7, 8], 4), ([5, 6, 7, 0], 3), ([5, 0, 7, 8], 1), ([0, 6, 7, 8], 0)],
)
@pytest.mark.parametrize("cut", [1, 2, 4])
def test_the_longest_common_beginning_is_accepted(chosen: list[int], count: int, cut: int) -> None:
    """Also if chunks split the rows."""
    lookahead = VerifiedLookahead(FIRST, TOKENS)
    for start in range(0, 4, cut):
        lookahead.add(FIRST + start, rows(*chosen[start : start + cut]))
    assert lookahead.end_row == FIRST + 4
    assert accepted(TOKENS, [lookahead.choices()]) == TOKENS[:count]


def test_choices_are_on_their_way_to_the_host_before_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []
    monkeypatch.setattr(verified_lookahead, "HostCopy", begun.append)
    choices = rows(5, 6, 7, 8)
    VerifiedLookahead(FIRST, TOKENS).add(FIRST, choices)
    assert begun == [choices]


def test_nothing_is_accepted_from_a_missing_row_on() -> None:
    lookahead = VerifiedLookahead(FIRST, TOKENS)
    assert accepted(TOKENS, [lookahead.choices()]) == ()
    lookahead.add(FIRST + 2, rows(7, 8))
    assert accepted(TOKENS, [lookahead.choices()]) == ()
    lookahead.add(FIRST, rows(5))
    assert accepted(TOKENS, [lookahead.choices()]) == (5,)
    lookahead.reset()
    assert lookahead.choices() == []


@pytest.mark.parametrize(
    ("one", "other", "count"),
    [
        ([(2.0, 5), (2.0, 6)], [(1.0, 90), (1.0, 90)], 2),
        ([(2.0, 5), (1.0, 6)], [(1.0, 90), (2.0, 90)], 1),
        # Of equal logits the first token.
        ([(2.0, 5), (2.0, 6)], [(2.0, 90), (2.0, 90)], 2),
        ([(2.0, 5), (2.0, 6)], [(1.0, 90)], 1),
        ([(2.0, 5)], [], 0),
    ],
)
def test_the_largest_logit_of_all_ranks_decides(one: Any, other: Any, count: int) -> None:
    assert accepted(TOKENS, [one, other]) == TOKENS[:count]


WEIGHTS = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
STATES = torch.randn(70, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("words", [50, 30])
def test_each_rank_computes_its_part_of_the_vocabulary(words: int) -> None:
    """Of 64 columns, 32 for each rank; those behind the vocabulary of `words` are larger than all others."""
    padded = torch.cat([WEIGHTS, torch.zeros(8, 14)], dim=1)

    def part_of(rank: int, ranks: Ranks) -> Any:
        def logits(block: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            assert processor.do_tensor_parallel_all_gather is False
            own = block @ padded[:, 32 * rank : 32 * rank + 32]
            own[:, max(0, words - 32 * rank) :] = 1e9
            return own

        processor = SimpleNamespace(_get_logits=logits, do_tensor_parallel_all_gather=True, vocab_size=words)
        lookahead = VerifiedLookahead(0, tuple(range(70)))
        lookahead.add(0, most_likely(processor, STATES, None, None, ranks))
        assert processor.do_tensor_parallel_all_gather is True
        return lookahead.choices()

    expected = tuple((STATES @ WEIGHTS[:, :words]).argmax(-1).tolist())
    assert (len(set(expected) & set(range(32, 50))) > 5) == (words == 50)
    assert accepted(expected, on_ranks(part_of)) == expected


def test_logits_that_no_rank_divides_are_whole_on_each() -> None:
    def logits(block: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return block @ WEIGHTS

    processor = SimpleNamespace(_get_logits=logits, do_tensor_parallel_all_gather=False)
    found = on_ranks(lambda _, ranks: most_likely(processor, STATES, None, None, ranks)[:, 1])
    assert [each.tolist() for each in found] == [(STATES @ WEIGHTS).argmax(-1).tolist()] * 2


def test_the_logits_are_sglangs_own() -> None:
    seen: list[int] = []

    def logits(block: torch.Tensor, head: Any, metadata: str, use_logits_buffer: bool) -> torch.Tensor:
        assert (metadata, use_logits_buffer) == ("metadata", False)
        seen.append(len(block))
        return block @ head

    found = most_likely(SimpleNamespace(_get_logits=logits), STATES, WEIGHTS, "metadata")
    largest = (STATES @ WEIGHTS).max(-1)
    assert torch.equal(found, torch.stack([largest.values.double(), largest.indices.double()], dim=1))
    assert max(seen) <= 32


@pytest.mark.parametrize(
    ("request_", "count"),
    [
        (Request(), 4),
        (Request(stop=7), 2),
        (Request(stop=5), 0),
        (Request(most=4), 3),
        (Request(most=1), 0),
        (Request(most=5), 4),
    ],
    ids=str,
)
def test_the_token_that_ends_the_answer_is_left_to_sglang(request_: Request, count: int) -> None:
    assert accept(request_, TOKENS) == count
    assert request_.output_ids == array("q", TOKENS[:count])
    assert (request_.finished_reason, request_.finished_len) == (None, None)


@pytest.mark.parametrize(
    "sampling",
    [
        {"top_k": 2},
        {"logit_bias": {"3": 1.0}},
        {"min_new_tokens": 1},
        {"presence_penalty": 0.1},
        {"frequency_penalty": -0.1},
        {"repetition_penalty": 1.1},
        {"json_schema": "{}"},
        {"regex": "a"},
        {"ebnf": "a"},
        {"structural_tag": "{}"},
    ],
    ids=str,
)
def test_only_plain_greedy_answers_begin_so(sampling: dict[str, Any]) -> None:
    request = Request(sampling)
    assert (accept(request, TOKENS), len(request.output_ids)) == (0, 0)


def test_answers_with_log_probabilities_do_not() -> None:
    assert accept(Request(return_logprob=True), TOKENS) == 0
