"""A draft of another vocabulary behind the port of an ordinary one: asked for what it can say, heard in our tokens."""

import asyncio
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from presift.core.errors import BudgetExceeded, InvalidRequest
from presift.core.importance import coverage
from presift.core.masks import TokenMask
from presift.core.plan import CompressedPrompt, ModelInfo
from presift.core.policies import Adaptive, KvSelection, Pool, SpecKv, SpecKvPc, SpecPc
from presift.core.selection import count_kv, select
from presift.core.spans import Span
from presift.orchestrator.backends.cross_vocabulary import CrossVocabularyDraft
from presift.orchestrator.domain.ports import DraftRequest, MaskRejected, Score
from presift.orchestrator.domain.request import TokenizedPrompt
from presift.orchestrator.planning.mask_validation import ScoringJob, check_prompt
from presift.orchestrator.prompt.tokenizing_limit import AT_ONCE_BYTES, SHORT_BYTES, TokenizingLimit
from presift.orchestrator.prompt.vocabulary_bridge import VocabularyBridge
from presift.rpc.deadline import NO_DEADLINE, Deadline

# Fewer in `make test-fast`.
EXAMPLES = settings().max_examples

DRAFT = ModelInfo("small", "r1", "f2", 2000, 4, 2, 500)
TARGET = replace(DRAFT, id="large", tokenizer_fingerprint="f1")
TEXT = "The quick brown fox jumps over the lazy dog; naïve 日本語 😀👍 sleeps on. " * 3
PC = SpecPc(24, window=6, pool=Pool.MEAN, kernel=3, neighbors=4, start_layer=2, lookahead_tokens=3)
KV = SpecKv(24, window=6, lookahead_tokens=5)
MASK = SpecKv(24, window=6, selection=KvSelection.DRAFT_MASK, mask=PC)
ADAPTIVE = Adaptive(0.6, min_capacity=8)
POLICIES = {"spec_pc": PC, "spec_kv": KV, "draft_mask": MASK, "spec_kv_pc": SpecKvPc(PC, KV)}
ADAPTING = {
    "adaptive spec_pc": replace(PC, capacity=40, adaptive=ADAPTIVE),
    "adaptive draft_mask": replace(MASK, capacity=40, adaptive=ADAPTIVE),
}
DRAWN = [name for name in POLICIES if name != "spec_kv"]


DEADLINE = Deadline.within(60.0)
SALT = "the tenant's"


class Port:
    """Records its requests; `importance` is set by the test, random by default."""

    def __init__(self, importance=None, lookahead=(), mass=None):
        self.importance, self.lookahead, self.mass, self.calls = importance, lookahead, mass, []

    async def score(self, request, deadline):
        self.calls.append((request, deadline))
        size = request.token_ids.size
        made = np.random.default_rng(0).random(size, dtype=np.float32) if self.importance is None else self.importance
        prompt = CompressedPrompt(TokenMask(np.ones(size, dtype=np.bool_)), self.lookahead, 0.5, DRAFT)
        return Score(
            prompt, made if request.include_importance and made is not False else None, self.mass, queue_ms=8.0
        )


def ids_of(backend, text):
    return np.array(backend.encode(text, add_special_tokens=False).ids, dtype=np.uint32)


async def score(port, backends, policy, *, text=TEXT, protected=(), include_importance=False):
    draft = CrossVocabularyDraft(port, VocabularyBridge(*backends), TokenizingLimit())
    request = DraftRequest(ids_of(backends[0], text), policy, protected, SALT, include_importance=include_importance)
    return await draft.score(request, DEADLINE)


@pytest.mark.parametrize("name", POLICIES | ADAPTING)
async def test_the_answer_is_what_the_policy_asks_for(bpe, words, name):
    policy = (POLICIES | ADAPTING)[name]
    told = tuple(words.encode("the lazy dog", add_special_tokens=False).ids)
    ids, spans = ids_of(bpe, TEXT), (Span(3, 7), Span(20, 23))
    made = await score(Port(lookahead=told), (bpe, words), policy, protected=spans)
    check_prompt(made.prompt, ScoringJob(TokenizedPrompt(ids, spans), policy, DRAFT, TARGET))
    assert made.prompt.draft is DRAFT and made.importance is None and made.mass is None and made.queue_ms == 8
    assert (made.prompt.mask.kept_tokens < ids.size) is (made.prompt.coverage is not None) is (name != "spec_kv")
    assert bpe.decode(list(made.prompt.lookahead_token_ids)) == (" the lazy dog" if "spec_kv" in name else "")[:13]


@pytest.mark.parametrize("name", DRAWN)
async def test_one_vocabulary_by_two_names_gives_the_mask_of_an_ordinary_draft(bpe, name):
    """But for characters of several tokens, which share what falls on them."""
    port, spans, text = Port(), (Span(3, 7),), "The quick brown fox jumps over the lazy dog. " * 3
    made = await score(port, (bpe, Tokenizer.from_str(bpe.to_str())), POLICIES[name], text=text, protected=spans)
    drawn_by = MASK.draft_policy if name == "draft_mask" else PC
    importance = np.random.default_rng(0).random(ids_of(bpe, text).size, dtype=np.float32)
    mask = select(importance, drawn_by, spans)
    assert made.prompt.mask == mask
    assert made.prompt.coverage == pytest.approx(coverage(importance, mask.kept))
    ((asked, _),) = port.calls
    assert asked.token_ids.tolist() == ids_of(bpe, text).tolist()
    scoring = asked.policy.prompt if name == "spec_kv_pc" else asked.policy
    assert scoring.window == drawn_by.window


@pytest.mark.parametrize(
    ("name", "seen", "kind"),
    [
        ("spec_pc", False, SpecPc),
        ("draft_mask", False, SpecPc),
        ("spec_kv_pc", False, SpecKvPc),
        ("spec_kv", False, SpecKv),
        ("spec_kv", True, SpecKvPc),
    ],
)
async def test_what_is_asked_of_the_draft(bpe, words, name, seen, kind):
    port = Port()
    made = await score(port, (bpe, words), POLICIES[name], protected=(Span(0, 2),), include_importance=seen)
    asked, deadline = port.calls[0]
    policy, include_importance = asked.policy, asked.include_importance
    assert asked.token_ids.tolist() == words.encode(TEXT).ids and asked.protected == () and deadline is DEADLINE
    assert asked.salt == SALT
    assert isinstance(policy, kind)
    if kind is SpecKv:
        assert policy == KV and not include_importance
    else:
        scoring = policy.prompt if kind is SpecKvPc else policy
        assert include_importance and scoring.capacity == scoring.window < asked.token_ids.size
        assert (scoring.pool, scoring.neighbors) == (Pool.NONE, 0)
    if kind is SpecKvPc:
        assert policy.kv.lookahead_tokens == KV.lookahead_tokens
    assert (made.importance is not None) is seen
    if name == "spec_pc":
        assert (scoring.start_layer, scoring.lookahead_tokens) == (PC.start_layer, PC.lookahead_tokens)


async def test_importance_is_of_our_tokens_and_of_the_same_sum(bpe, words):
    made = await score(Port(), (bpe, words), PC, include_importance=True)
    given = np.random.default_rng(0).random(len(words.encode(TEXT).ids), dtype=np.float32)
    assert made.importance.size == ids_of(bpe, TEXT).size
    assert made.importance.sum() == pytest.approx(given.sum(), rel=1e-5)


async def test_what_the_draft_looks_at_is_kept(bpe, words):
    """A needle: one word of the draft's has all the importance."""
    encoding = words.encode(TEXT)
    needle = encoding.tokens.index("jumps")
    importance = np.zeros(len(encoding.ids), dtype=np.float32)
    importance[needle] = 1.0
    made = await score(Port(importance), (bpe, words), replace(PC, pool=Pool.NONE, neighbors=0))
    kept = set(made.prompt.mask.indices.tolist())
    start, end = encoding.offsets[needle]
    offsets = bpe.encode(TEXT, add_special_tokens=False).offsets
    assert {at for at, (first, last) in enumerate(offsets) if first < end and last > start} <= kept
    assert made.prompt.coverage == 1.0


async def test_a_prompt_within_the_capacity_is_kept_whole(bpe, words):
    made = await score(Port(), (bpe, words), replace(PC, capacity=10_000))
    assert made.prompt.mask.kept.all() and made.prompt.coverage is None


@pytest.mark.parametrize(
    ("importance", "words_of_it"),
    [(False, "scored nothing"), (np.ones(3, dtype=np.float32), "importance of 3 tokens"), ("nan", "not finite")],
    ids=["none", "of another length", "nan"],
)
async def test_importance_that_cannot_be_used(bpe, words, importance, words_of_it):
    if isinstance(importance, str):
        importance = np.full(len(words.encode(TEXT).ids), np.nan, dtype=np.float32)
    with pytest.raises(MaskRejected, match=words_of_it):
        await score(Port(importance), (bpe, words), PC)


async def test_protected_spans_beyond_the_capacity(bpe, words):
    with pytest.raises(BudgetExceeded):
        await score(Port(), (bpe, words), PC, protected=(Span(0, 30),))


async def test_ids_of_no_text_never_reach_the_draft(bpe, words):
    port = Port()
    with pytest.raises(InvalidRequest):
        await CrossVocabularyDraft(port, VocabularyBridge(bpe, words), TokenizingLimit()).score(
            DraftRequest(ids_of(bpe, "😀" * 40)[1:], PC, (), ""), NO_DEADLINE
        )
    assert port.calls == []


async def test_texts_are_encoded_within_the_limit_of_tokenizing(bpe, words):
    port, limit, gate = Port(), TokenizingLimit(), threading.Event()
    draft = CrossVocabularyDraft(port, VocabularyBridge(bpe, words), limit)
    full = [asyncio.create_task(limit.run(gate.wait, SHORT_BYTES)) for _ in range(AT_ONCE_BYTES // SHORT_BYTES)]
    scoring = asyncio.create_task(draft.score(DraftRequest(ids_of(bpe, TEXT), PC, (), ""), NO_DEADLINE))
    done, _ = await asyncio.wait([scoring], timeout=0.1)
    assert not done and port.calls == []
    gate.set()
    await asyncio.gather(scoring, *full)
    assert len(port.calls) == 1


ANY = st.text(st.characters(exclude_categories=["Cs"]), min_size=60, max_size=120)


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=ANY, name=st.sampled_from(DRAWN), cut=st.integers(0, 40))
async def test_any_unicode(bpe, unigram, text, name, cut):
    """Of any text the mask holds capacity, window and protected spans, in the target's tokens."""
    policy, spans = POLICIES[name], (Span(cut, cut + 6),)
    ids = ids_of(bpe, text)
    made = await score(Port(), (bpe, unigram), policy, text=text, protected=spans)
    check_prompt(made.prompt, ScoringJob(TokenizedPrompt(ids, spans), policy, DRAFT, TARGET))
    capacity = 25 if name == "draft_mask" else 24
    assert made.prompt.mask.kept_tokens == min(capacity, ids.size)


COUNTED = replace(KV, capacity=40, adaptive=ADAPTIVE)
CASCADE = SpecKvPc(PC, replace(COUNTED, capacity=20))


@pytest.mark.parametrize("policy", [COUNTED, CASCADE], ids=["of all", "of what is read"])
async def test_kv_is_counted_in_our_tokens(bpe, words, policy):
    port = Port()
    made = await score(port, (bpe, words), policy, protected=(Span(0, 2),), include_importance=True)
    assert port.calls[0][0].policy.kv.adaptive is None  # the draft's own tokens are not to be counted
    wanted = count_kv(made.importance, made.mass, made.prompt.mask, policy.counting_policy, (Span(0, 2),))
    assert (made.prompt.kv_capacity, made.prompt.kv_coverage) == (wanted.capacity, wanted.coverage)
    tokens = TokenizedPrompt(ids_of(bpe, TEXT), (Span(0, 2),))
    check_prompt(made.prompt, ScoringJob(tokens, policy, DRAFT, TARGET))


async def test_coverage_is_of_the_mass(bpe, words):
    mass = np.zeros(len(words.encode(TEXT).ids), dtype=np.float32)
    mass[-1] = 1.0
    made = await score(Port(mass=mass), (bpe, words), PC)
    assert made.prompt.coverage == pytest.approx(1.0)  # all of it lies in the window
    without = await score(Port(), (bpe, words), PC)
    assert without.prompt.coverage < 1.0


async def test_a_mass_of_another_length_is_rejected(bpe, words):
    with pytest.raises(MaskRejected, match="3 tokens"):
        await score(Port(mass=np.ones(3, dtype=np.float32)), (bpe, words), PC)
