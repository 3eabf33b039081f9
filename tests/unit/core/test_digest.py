from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from presift.core import digest as digest_module
from presift.core.digest import PromptKey, policy_name
from presift.core.plan import ModelInfo
from presift.core.policies import POLICIES, Adaptive, Heads, KvSelection, Pool, Reduction, SpecKv, SpecKvPc, SpecPc
from presift.core.spans import Span

DRAFT = ModelInfo("draft", "r1", "f1", context_tokens=4096, layers=2, kv_heads=1, vocabulary_size=512)
KEY = PromptKey(np.array([5, 6, 7], dtype=np.uint32), SpecPc(capacity=256), (Span(0, 2),), 0, DRAFT, "tenant")
SPEC_PC, SPEC_KV = SpecPc(capacity=256), SpecKv(capacity=256)
OTHER_KEY = {
    "token_ids": [np.array(ids, dtype=np.uint32) for ids in ([5, 6, 8], [5, 7, 6], [5, 6], [5, 6, 7, 0], [0, 5, 6, 7])],
    "policy": [SPEC_KV, SpecKvPc(SPEC_PC, SPEC_KV)],
    "protected": [(), (Span(0, 1),), (Span(1, 2),), (Span(0, 3),), (Span(0, 1), Span(2, 3))],
    "lookahead_tokens": [1],
    "draft": [replace(DRAFT, **{name: "other"}) for name in ("id", "revision", "tokenizer_fingerprint")],
    "salt": ["", "Tenant", "tenant "],
    "target_fingerprint": ["f2", "f3"],
}
# Another value for every field of every policy.
OTHER_POLICY = {
    "capacity": 257,
    "window": 31,
    "pool": Pool.NONE,
    "kernel": 9,
    "neighbors": 17,
    "reduction": Reduction.SUM,
    "start_layer": 9,
    "weighted_query": False,
    "lookahead_tokens": 5,
    "selection": KvSelection.DRAFT_MASK,
    "mask": SpecPc(capacity=256, kernel=9),
    "adaptive": Adaptive(0.9, 64),
    "heads": Heads.CALIBRATED,
}


def variants():
    for name, others in OTHER_KEY.items():
        for number, other in enumerate(others):
            yield pytest.param(replace(KEY, **{name: other}), id=f"{name}-{number}")


def test_every_field_of_the_key_is_varied():
    assert OTHER_KEY.keys() == {field.name for field in fields(PromptKey)}


@pytest.mark.parametrize("other", list(variants()))
def test_the_digest_changes_with_every_field(other):
    assert other.digest() != KEY.digest()


def test_no_two_of_these_keys_share_a_digest():
    digests = [variant.values[0].digest() for variant in variants()]
    assert len({*digests, KEY.digest()}) == len(digests) + 1


WRAPS = {
    "spec_pc": (SPEC_PC, lambda policy: policy),
    "spec_kv": (SPEC_KV, lambda policy: policy),
    "spec_kv_pc.prompt": (SPEC_PC, lambda policy: SpecKvPc(policy, SPEC_KV)),
    "spec_kv_pc.kv": (SPEC_KV, lambda policy: SpecKvPc(SPEC_PC, policy)),
    "spec_kv.mask": (SPEC_PC, lambda policy: replace(SPEC_KV, selection=KvSelection.DRAFT_MASK, mask=policy)),
}


@pytest.mark.parametrize("place", WRAPS)
def test_the_digest_changes_with_every_field_of_a_policy(place):
    base, wrap = WRAPS[place]
    # A cascade has one selection only.
    names = {field.name for field in fields(base)} - ({"selection"} if place == "spec_kv_pc.kv" else set())
    names -= WHILE_GENERATING.keys()
    policies = [base, *(replace(base, **{name: OTHER_POLICY[name]}) for name in names)]
    assert len({replace(KEY, policy=wrap(policy)).digest() for policy in policies}) == len(names) + 1


WHILE_GENERATING = {"renew_every": 16, "renew_window": 8, "first_full_tokens": 24}


@pytest.mark.parametrize("name", WHILE_GENERATING)
def test_what_the_target_does_while_it_generates_shares_a_compressed_prompt(name):
    plain, renewing = (
        replace(KEY, policy=policy) for policy in (SPEC_KV, replace(SPEC_KV, **{name: WHILE_GENERATING[name]}))
    )
    assert plain.digest() == renewing.digest()


@pytest.mark.parametrize("other", [Adaptive(0.8, 64), Adaptive(0.9, 65), Adaptive(0.9, 64, 2)])
def test_the_digest_changes_with_every_field_of_what_adapts(other):
    forms = [
        replace(KEY, policy=replace(KEY.policy, adaptive=adaptive)) for adaptive in (None, Adaptive(0.9, 64), other)
    ]
    assert len({form.digest() for form in forms}) == 3


def test_the_digest_changes_with_the_schema(monkeypatch):
    before = KEY.digest()
    monkeypatch.setattr(digest_module, "SCHEMA_VERSION", digest_module.SCHEMA_VERSION + 1)
    assert KEY.digest() != before


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)), max_size=5), st.randoms())
def test_the_digest_is_that_of_the_protected_tokens_however_they_are_written(pairs, random):
    spans = [Span(start, start + length) for start, length in pairs]
    cut = [Span(i, i + 1) for span in spans for i in range(span.start, span.end)]
    random.shuffle(cut)
    written = [replace(KEY, protected=form).digest() for form in (tuple(spans), tuple(spans[::-1]), tuple(cut))]
    assert len(set(written)) == 1


def test_the_digest_is_that_of_the_ids_whatever_their_layout():
    forms = [KEY.token_ids.astype(">u4"), KEY.token_ids.astype(np.int64), np.repeat(KEY.token_ids, 2)[::2]]
    assert {replace(KEY, token_ids=ids).digest() for ids in forms} == {KEY.digest()}


@pytest.mark.parametrize("name", ["context_tokens", "layers", "kv_heads", "vocabulary_size"])
def test_what_the_revision_implies_is_left_out(name):
    assert replace(KEY, draft=replace(DRAFT, **{name: 9})).digest() == KEY.digest()


def test_the_digest_stays_what_it_is():
    """A change here empties every cache: raise SCHEMA_VERSION with it and say so in the changelog."""
    assert KEY.digest() == "0108ff89c86a25f084da0906d91cd9d85c30c3d7c4c6ffdf8385e4571cb0a574"


STORED = {
    "spec_kv": "63fad670552f6a5ed30e09bffe647645571caccff2e74597dd053a6d2f6d8a3a",
    "by mask": "7cd0fb5cb95f2adf74dec76fa3695041e1be457921b4b379bd108972911d811b",
    "spec_kv_pc": "d401ebb4a294894de980d71fc31e58b4fd18b46e679eb12169aaf501b2360020",
}


@pytest.mark.parametrize("name", STORED)
def test_a_policy_that_does_not_adapt_keeps_the_digest_from_before_there_were_any(name):
    by_mask = replace(SPEC_KV, selection=KvSelection.DRAFT_MASK, mask=SPEC_PC)
    policy = {"spec_kv": SPEC_KV, "by mask": by_mask, "spec_kv_pc": SpecKvPc(SPEC_PC, SPEC_KV)}[name]
    assert replace(KEY, policy=policy).digest() == STORED[name]


@pytest.mark.parametrize("policy", [SPEC_PC, SPEC_KV, SpecKvPc(SPEC_PC, SPEC_KV)])
def test_a_policy_knows_its_name(policy):
    assert POLICIES[policy_name(policy)] is type(policy)
