"""A request checks its own values; `sampling_arguments` translates them to SGLang."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from presift.core.errors import InvalidRequest
from presift.core.generation import Sampling
from presift.target.engine import GenerateRequest
from presift.target.sglang.messages import sampling_arguments

PROMPT = np.array([1, 2], dtype=np.uint32)


def arguments(**sampling: Any) -> dict[str, Any]:
    return sampling_arguments(GenerateRequest(PROMPT, Sampling(**sampling)))


def test_defaults_are_greedy_and_256_tokens() -> None:
    assert arguments() == {
        "max_new_tokens": 256,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": -1,
        "sampling_seed": None,
        "stop": [],
        "stop_token_ids": [],
        "ignore_eos": False,
        "custom_params": None,
        # SGLang takes None for its own default: none of these.
        **dict.fromkeys(("min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "min_new_tokens")),
        "logit_bias": None,
        "skip_special_tokens": True,
        "no_stop_trim": False,
    }


@pytest.mark.parametrize(
    ("seed", "signed"), [(0, 0), (7, 7), (2**63 - 1, 2**63 - 1), (2**63, -(2**63)), (2**64 - 1, -1)]
)
def test_an_unsigned_seed_becomes_a_signed_one(seed: int, signed: int) -> None:
    assert arguments(seed=seed)["sampling_seed"] == signed


@pytest.mark.parametrize("value", [{"top_p": float("nan")}, {"temperature": float("inf")}, {"max_new_tokens": -1}])
def test_values_out_of_range_are_refused(value: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        GenerateRequest(PROMPT, Sampling(**value))
    assert refusal.value.field == f"sampling.{next(iter(value))}"


def test_limits_are_inclusive() -> None:
    GenerateRequest(PROMPT, Sampling(max_new_tokens=1, temperature=2.0, top_p=1.0, top_k=1, stop=("x",) * 16))


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        GenerateRequest(np.array([], dtype=np.uint32))
