"""What presift sends to SGLang."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from presift.core.generation import Grammar, GrammarKind, Sampling
from presift.core.kv_plan import KvPlan
from presift.core.policies import SpecKv
from presift.models.torchvision_ops import declare_missing
from presift.target.engine import GenerateRequest
from presift.target.sglang.messages import sampling_arguments, to_sglang
from presift.target.sglang.parsers import NO_PARSERS, Prepared
from presift.target.sglang_plugin import custom_params

PLAN = KvPlan(SpecKv(capacity=8, window=3), lookahead_token_ids=(4, 5))
TOKENS = np.array([1, 2, 3], dtype=np.uint32)


def test_the_plan_travels_as_one_text() -> None:
    request = GenerateRequest(TOKENS, kv_plan=PLAN)
    (name, text), *others = sampling_arguments(request)["custom_params"].items()
    assert (name, others) == (custom_params.KEY, [])
    assert custom_params.from_text(text) == PLAN


@pytest.mark.skipif(find_spec("sglang") is None, reason="needs SGLang")
def test_sglang_takes_the_request() -> None:
    declare_missing()
    planned = to_sglang(GenerateRequest(TOKENS, Sampling(max_new_tokens=5), "salt", PLAN), NO_PARSERS, Prepared())
    plain, other = (to_sglang(GenerateRequest(TOKENS), NO_PARSERS, Prepared()) for _ in range(2))
    assert (planned.input_ids, planned.cache_salt, planned.stream) == ([1, 2, 3], "salt", True)
    assert planned.sampling_params["max_new_tokens"] == 5
    assert custom_params.from_text(planned.sampling_params["custom_params"]["presift"]) == PLAN
    assert (plain.cache_salt, plain.sampling_params["custom_params"]) == (None, None)
    assert len({planned.rid, plain.rid, other.rid}) == 3


@pytest.mark.parametrize(("top_k", "sent"), [(None, -1), (1, 1), (40, 40), (2**30, 2**30), (2**32 - 1, 2**30)])
def test_top_k_fits_the_schedulers_int32(top_k: int | None, sent: int) -> None:
    request = GenerateRequest(TOKENS, Sampling(top_k=top_k))
    assert sampling_arguments(request)["top_k"] == sent


def test_everything_about_sampling_is_passed_on() -> None:
    values = {"min_p": 0.1, "presence_penalty": -1.0, "frequency_penalty": 0.5, "repetition_penalty": 1.2}
    request = GenerateRequest(
        TOKENS, Sampling(**values, min_new_tokens=3, logit_bias={7: -2.0}, keep_special_tokens=True)
    )
    sent = sampling_arguments(request)
    assert values | {"min_new_tokens": 3} == {name: sent[name] for name in (*values, "min_new_tokens")}
    assert (sent["logit_bias"], sent["skip_special_tokens"]) == ({"7": -2.0}, False)
    plain = sampling_arguments(GenerateRequest(TOKENS))
    assert (plain["logit_bias"], plain["min_p"], plain["skip_special_tokens"]) == (None, None, True)


@pytest.mark.parametrize("kind", GrammarKind)
def test_a_grammar_has_sglangs_name(kind: GrammarKind) -> None:
    sent = sampling_arguments(GenerateRequest(TOKENS, Sampling(grammar=Grammar(kind, "{}"))))
    assert {each.value: sent.get(each.value) for each in GrammarKind} == {each.value: None for each in GrammarKind} | {
        kind.value: "{}"
    }
