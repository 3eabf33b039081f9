"""Which answers another target can continue, and what it is asked."""

from dataclasses import replace

import numpy as np
import pytest

from presift.core.answer import AnswerFormat
from presift.core.generation import Grammar, GrammarKind, Sampling
from presift.core.kv_plan import KvPlan
from presift.core.policies import SpecKv
from presift.orchestrator.domain.ports import TargetRequest
from presift.orchestrator.planning.migration import can_migrate, remainder_of

PROMPT = np.arange(1, 9, dtype=np.uint32)
GREEDY, SEEDED = Sampling(), Sampling(temperature=0.7, seed=3)
PLAN = KvPlan(SpecKv(4, window=2))
RENEWS = KvPlan(SpecKv(4, window=2, renew_every=4, renew_window=2))
LOOKS_AHEAD = KvPlan(SpecKv(4, window=2, first_full_tokens=2, renew_window=2))


@pytest.mark.parametrize(
    ("sampling", "plan", "answer_format", "can"),
    [
        (GREEDY, None, None, True),
        (SEEDED, None, None, True),
        (Sampling(temperature=0.7, top_k=1), None, None, True),
        (Sampling(temperature=0.7), None, None, False),
        (replace(GREEDY, presence_penalty=0.0, frequency_penalty=0.0, repetition_penalty=1.0), None, None, True),
        (replace(GREEDY, presence_penalty=0.1), None, None, False),
        (replace(GREEDY, frequency_penalty=0.1), None, None, False),
        (replace(GREEDY, repetition_penalty=1.1), None, None, False),
        (replace(GREEDY, logit_bias={1: 2.0}), None, None, True),
        (replace(GREEDY, grammar=Grammar(GrammarKind.REGEX, "a")), None, None, False),
        (GREEDY, None, AnswerFormat(), False),
        (GREEDY, PLAN, None, True),
        (SEEDED, PLAN, None, False),
        (GREEDY, RENEWS, None, False),
        (GREEDY, LOOKS_AHEAD, None, False),
    ],
)
def test_which_answers_can_be_continued(sampling, plan, answer_format, can):
    assert can_migrate(TargetRequest(PROMPT, sampling, "", plan, answer_format)) is can


def test_the_rest_is_asked_behind_the_answer():
    sampling = replace(SEEDED, max_new_tokens=5, min_new_tokens=3, stop=("x",))
    rest = remainder_of(TargetRequest(PROMPT, sampling, "salt"), [20, 21])
    assert rest.token_ids.tolist() == [*PROMPT, 20, 21] and rest.token_ids.dtype == np.uint32
    assert rest.sampling == replace(SEEDED, max_new_tokens=3, min_new_tokens=1, stop=("x",))
    assert (rest.kv_plan, rest.salt) == (None, "salt")


def test_a_minimum_that_was_reached_is_unset():
    rest = remainder_of(TargetRequest(PROMPT, Sampling(5, min_new_tokens=2), ""), [20, 21])
    assert rest.sampling.min_new_tokens is None


@pytest.mark.parametrize(("answer", "is_over"), [([1], False), ([1, 2], True), ([1, 2, 3], True)])
def test_nothing_is_asked_when_nothing_is_left(answer, is_over):
    assert (remainder_of(TargetRequest(PROMPT, Sampling(2), ""), answer) is None) is is_over


@pytest.mark.parametrize(("covered", "asked"), [(0, 8), (6, 6)])
def test_the_plan_covers_what_it_covered(covered, asked):
    rest = remainder_of(TargetRequest(PROMPT, GREEDY, "", replace(PLAN, prompt_tokens=covered)), [20])
    assert rest.kv_plan == replace(PLAN, prompt_tokens=asked)
