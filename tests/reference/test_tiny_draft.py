"""SpecPC through gRPC on the tiny random models: the authors' attention, lookahead and selections, from token ids."""

from dataclasses import replace

import grpc
import numpy as np
import pytest

from presift.core.errors import InvalidRequest
from presift.core.masks import TokenMask
from presift.core.policies import Reduction, SpecPc
from presift.draft.scorer import Cancel, ScoreTask
from presift.draft.transformers_scorer import TransformersScorer
from presift.models.folder import resolve
from presift.rpc import codec
from presift.v1 import draft_pb2

ATTENTION_CASES, SELECT_CASES = 52, 220
REFUSED = {11, 12, 24, 25, 37, 38, 50, 51}  # a layer or a window that is not there: the authors' code crashes


def _policy(config, capacity=None):
    """What of the policy the attention depends on."""
    return SpecPc(
        capacity=capacity or config["window_size"],
        window=config["window_size"],
        start_layer=config["starting_layer_index"],
        reduction=Reduction.MAX if config["reduction_type"] == "max" else Reduction.SUM,
        weighted_query=config["weighted_query"],
        lookahead_tokens=config["lookahead_tokens"],
    )


def _request(ids, policy, **options):
    return draft_pb2.ScoreRequest(token_ids=ids.tolist(), policy=codec.policy_to_wire(policy), **options)


def _assert_close(ours, theirs):
    # 1e-3 is what the issue asks for; float32 gives 1e-5 of the highest value.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * max(1.0, float(theirs.max())))


def test_every_vector_has_a_test(vectors):
    tiny = vectors("tiny").json
    assert [case["id"] for case in tiny["specpc_attention"]] == list(range(ATTENTION_CASES))
    assert [case["id"] for case in tiny["specpc_select"]] == list(range(SELECT_CASES))
    assert {case["id"] for case in tiny["specpc_attention"] if "error" in case} == REFUSED


@pytest.mark.parametrize("index", sorted(set(range(ATTENTION_CASES)) - REFUSED))
def test_attention_and_lookahead(index, vectors, tiny_model, draft_stub):
    stored = vectors("tiny")
    case = stored.json["specpc_attention"][index]
    ids, policy = stored.arrays[case["input_ids"]].ravel(), _policy(case["config"])
    wanted = case["config"]["lookahead_tokens"]
    request = _request(ids, policy, include_importance=True, lookahead_tokens=wanted)
    response = draft_stub(tiny_model(case["model"])).Score(request)
    assert list(response.lookahead_token_ids) == case["lookahead_ids"]
    if policy.capacity < len(ids):
        _assert_close(np.array(response.importance), stored.arrays[f"attn_{index}"])
    else:
        assert not response.importance  # kept whole, so not scored


@pytest.mark.parametrize("chunk_tokens", [64, 512])
def test_attention_where_the_window_is_the_whole_prompt(chunk_tokens, vectors, tiny_model):
    """The service keeps such a prompt whole; the scorer itself can still be asked."""
    stored, scorers, seen = vectors("tiny"), {}, 0
    for case in stored.json["specpc_attention"]:
        ids = stored.arrays[case["input_ids"]].ravel().astype(np.uint32)
        if case["config"]["window_size"] != len(ids):
            continue
        folder = resolve(str(tiny_model(case["model"])))
        scorer = scorers.setdefault(folder.id, TransformersScorer(folder, chunk_tokens=chunk_tokens))
        scored = scorer.score(ScoreTask(ids, _policy(case["config"])), Cancel())
        _assert_close(scored.importance, stored.arrays[f"attn_{case['id']}"])
        seen += 1
    assert seen == 4


@pytest.mark.parametrize("index", sorted(REFUSED))
def test_what_crashes_the_authors_code_is_refused(index, vectors, tiny_model, draft_stub):
    stored = vectors("tiny")
    case = stored.json["specpc_attention"][index]
    ids, policy = stored.arrays[case["input_ids"]].ravel(), _policy(case["config"])
    if policy.start_layer < 4:
        with pytest.raises(InvalidRequest, match=r"spec_pc\.window"):
            ScoreTask(ids.astype(np.uint32), policy)
        return
    with pytest.raises(grpc.RpcError) as refusal:
        draft_stub(tiny_model(case["model"])).Score(_request(ids, policy))
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "start_layer is 4; it must be < 4" in refusal.value.details()


@pytest.mark.parametrize("index", range(SELECT_CASES))
def test_the_same_tokens_are_kept(index, vectors, tiny_model, draft_stub, spec_pc):
    stored = vectors("tiny")
    case = stored.json["specpc_select"][index]
    attention = stored.json["specpc_attention"][case["attn"]]
    if case["config"]["max_capacity_prompt"] < case["config"]["window_size"]:
        return  # refused: tests/contract/test_draft_service.py
    shape = _policy(attention["config"], case["config"]["max_capacity_prompt"])
    selection = spec_pc(case["config"])
    policy = replace(shape, pool=selection.pool, kernel=selection.kernel, neighbors=selection.neighbors)
    ids = stored.arrays[attention["input_ids"]].ravel()
    response = draft_stub(tiny_model(attention["model"])).Score(_request(ids, policy))
    mask = TokenMask.from_bits(response.token_mask.kept, response.token_mask.prompt_tokens)
    np.testing.assert_array_equal(mask.indices, stored.stable(f"sel_{index}"))
    assert response.HasField("coverage") == (len(ids) > policy.capacity)
    assert 0.0 <= response.coverage <= 1.0
