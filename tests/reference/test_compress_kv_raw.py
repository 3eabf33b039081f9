"""SpecKV's selection on random queries and keys: what the authors' `compress_kv` returns, per KV head."""

import numpy as np
import pytest

from presift.core.errors import InvalidRequest

from .kv_selection import kv_importance, select_kv

CASES = 112
# What the authors' code crashes on or gets wrong, and the field that we refuse (design, SpecKV step 6). For the two
# windows that reach the prompt's start it is the capacity too: theirs is below the window.
REFUSED = {
    **dict.fromkeys((50, 106), "spec_kv.capacity"),  # window > n: RuntimeError
    **dict.fromkeys((51, 107), "spec_kv.capacity"),  # window == n: RuntimeError
    **dict.fromkeys((52, 108), "spec_kv.capacity"),  # capacity < window: keeps far more than the capacity
    **dict.fromkeys((53, 109), "spec_kv.capacity"),  # capacity == window: keeps the window alone
    **dict.fromkeys((54, 110), "spec_kv.kernel"),  # even kernel: gathers out of range, or one value too many
    **dict.fromkeys((55, 111), "spec_kv.capacity"),  # no capacity: sparse prefill, which is not SpecKV here
}
NOTHING_DROPPED = (48, 104)  # capacity == n: an AssertionError there; here the prompt fits and is kept


def _kept(stored, case, policy):
    """bool[kv_heads, n]."""
    queries = stored.arrays[f"{case['tensors']}_q"][0].transpose(1, 0, 2)
    keys = stored.arrays[f"{case['tensors']}_k"][0].transpose(1, 0, 2)
    importance = kv_importance(queries[-policy.window :], keys, policy)
    return select_kv(importance, policy.capacity, policy.window)


def test_every_vector_has_a_test(vectors):
    cases = vectors("compress_kv_raw").json["cases"]
    assert [case["id"] for case in cases] == list(range(CASES))
    edges = {case["id"] for case in cases if "edge" in case and case["edge"] != "capacity==len-1"}
    assert edges == {*REFUSED, *NOTHING_DROPPED}


@pytest.mark.parametrize("index", sorted(set(range(CASES)) - {*REFUSED, *NOTHING_DROPPED}))
def test_the_same_kv_pairs_are_kept(index, vectors, spec_kv):
    stored = vectors("compress_kv_raw")
    case = stored.json["cases"][index]
    policy = spec_kv(case["args"])
    kept = _kept(stored, case, policy)
    ranked = stored.stable(f"topk_{index}").reshape(kept.shape[0], -1)
    for head, positions in enumerate(ranked):
        window = range(kept.shape[1] - policy.window, kept.shape[1])
        assert np.flatnonzero(kept[head]).tolist() == [*sorted(positions.tolist()), *window]
    assert (kept.sum(axis=1) == case["kept_len"]).all()


@pytest.mark.parametrize("index", NOTHING_DROPPED)
def test_nothing_is_dropped_from_a_prompt_that_fits(index, vectors, spec_kv):
    stored = vectors("compress_kv_raw")
    case = stored.json["cases"][index]
    assert case["error"].startswith("AssertionError")
    assert _kept(stored, case, spec_kv(case["args"])).all()


@pytest.mark.parametrize("index", sorted(REFUSED))
def test_what_the_authors_code_gets_wrong_is_refused(index, vectors, spec_kv):
    args = vectors("compress_kv_raw").json["cases"][index]["args"]
    with pytest.raises(InvalidRequest) as refusal:
        spec_kv(args)
    assert refusal.value.field == REFUSED[index]
    assert refusal.value.value == args["kernel_size" if REFUSED[index].endswith("kernel") else "max_capacity_prompt"]
