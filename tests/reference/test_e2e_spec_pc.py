"""SpecPC end to end on the tiny models: a draft service keeps tokens, another model answers from them alone."""

import pytest

from presift.core.masks import TokenMask
from presift.core.policies import Pool, Reduction, SpecPc
from presift.rpc import codec
from presift.v1 import draft_pb2

CASES = [1, 2, 3, 4, 15, 16, 17, 18, 29, 30, 31, 32, 43, 44, 45, 46]
FULL = [0, 14, 28, 42]
LOOKAHEAD_NONE_MEANS = 20  # the default length of transformers' generate; data/README.md, behaviour 3


@pytest.fixture(scope="module")
def answer(tiny_model):
    """(model, prompt ids, tokens) -> what transformers generates greedily."""
    import functools

    import torch

    from presift.models import torchvision_ops

    torchvision_ops.declare_missing()
    from transformers import AutoModelForCausalLM

    load = functools.cache(lambda name: AutoModelForCausalLM.from_pretrained(tiny_model(name), dtype=torch.float32))

    def generate(name, ids, tokens):
        prompt = torch.tensor([ids])
        output = load(name).generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, do_sample=False, pad_token_id=0
        )
        return output[0, len(ids) :].tolist()

    return generate


def _policy(config):
    return SpecPc(
        capacity=config["max_capacity_prompt"],
        window=config["window_size"],
        pool={"max": Pool.MAX, "mean": Pool.MEAN, None: Pool.NONE}[config["pool_type"]],
        kernel=config["kernel_size"],
        neighbors=config["neighbor_tokens"],
        reduction=Reduction.MAX if config["reduction_type"] == "max" else Reduction.SUM,
        start_layer=config["starting_layer_index"],
        weighted_query=config["weighted_query"],
        lookahead_tokens=config["lookahead_tokens"] or LOOKAHEAD_NONE_MEANS,
    )


@pytest.fixture
def end_to_end(reference_dir, vectors):
    import json

    cases = json.loads((reference_dir / "e2e_tiny.json").read_text())["cases"]
    return cases, vectors("tiny").arrays


def test_every_spec_pc_case_is_listed(end_to_end):
    cases, _ = end_to_end
    assert [case["id"] for case in cases if case["method"] == "specpc"] == CASES
    assert [case["id"] for case in cases if case["method"] == "full"] == FULL


@pytest.mark.parametrize("index", FULL)
def test_the_full_prompt_is_answered_alike(index, end_to_end, answer):
    cases, arrays = end_to_end
    case = cases[index]
    assert answer(case["target"], arrays[case["input_ids"]].ravel().tolist(), 16) == case["output_ids"]


@pytest.mark.parametrize("index", CASES)
def test_the_compressed_prompt_is_answered_alike(index, end_to_end, answer, tiny_model, draft_stub):
    cases, arrays = end_to_end
    case, policy = cases[index], _policy(cases[index]["config"])
    ids = arrays[case["input_ids"]].ravel().tolist()
    response = draft_stub(tiny_model(case["draft"])).Score(
        draft_pb2.ScoreRequest(
            token_ids=ids, policy=codec.policy_to_wire(policy), lookahead_tokens=policy.lookahead_tokens
        )
    )
    assert list(response.lookahead_token_ids) == case["lookahead_ids"]
    mask = TokenMask.from_bits(response.token_mask.kept, response.token_mask.prompt_tokens)
    assert mask.kept_tokens == case["input_size"]
    assert answer(case["target"], [ids[place] for place in mask.indices], 16) == case["output_ids_ties_low"]
