"""The safety rules of the architecture: for each a planted fault, and what must come of it."""

import grpc
import pytest

from presift.core.errors import Overloaded, PromptTooLong, RouteUnsupported, TargetUnavailable, VocabularyMismatch
from presift.core.plan import CompressedPrompt
from presift.rpc.codec import model_from_wire
from presift.v1 import orchestrator_pb2, plan_pb2

from ...builders import token_mask
from ..fakes.services import aborts, bits, hangs, keep, model, raises
from ..fakes.stack import CAPACITY, WINDOW, refusal_of, wire_prompt

LONG = list(range(100, 200))
KEPT = keep(100, CAPACITY, WINDOW, [(50, 52)])


async def in_full(stack, reason, telemetry=None, **options):
    """Ask for LONG and hold that it was read in full for `reason`, and counted as a fallback."""
    before = telemetry.total("presift.fallbacks", reason=reason.lower(), route="full") if telemetry else 0
    answer = await stack.ask(LONG, spans=[(50, 52)], **options)
    assert (answer.route, answer.reason, answer.cache) == ("FULL", reason, "NOT_USED")
    assert list(stack.target.calls[-1].token_ids) == LONG
    assert answer.decision.kept_tokens == 100 and not answer.decision.HasField("coverage")
    assert answer.decision.detail
    if telemetry:
        assert telemetry.total("presift.fallbacks", reason=reason.lower(), route="full") == before + 1
    return answer


def masks(indices, prompt_tokens=100):
    def spoil(reply, request):
        reply.token_mask.prompt_tokens = prompt_tokens
        reply.token_mask.kept = bits(indices, prompt_tokens)

    return spoil


def replies(**values):
    def spoil(reply, request):
        for name, value in values.items():
            setattr(reply, name, value)

    return spoil


def short_bitset(reply, request):
    reply.token_mask.kept = reply.token_mask.kept[:-1]


def padding_set(reply, request):
    reply.token_mask.kept = reply.token_mask.kept[:-1] + b"\xff"


def no_mask(reply, request):
    reply.ClearField("token_mask")


BAD_MASKS = {
    "drops a protected token": masks([i for i in KEPT if i != 51]),
    "drops the window": masks([i for i in KEPT if i < 96]),
    "drops one token of the window": masks([i for i in KEPT if i != 96]),
    "over budget": masks([*KEPT, 60]),
    "keeps everything": masks(range(100)),
    "one token short": masks([i for i in KEPT if i < 99], 99),
    "one token long": masks(KEPT, 101),
    "bitset too short": short_bitset,
    "padding set": padding_set,
    "empty": no_mask,
    "coverage over 1": replies(coverage=1.5),
    "coverage no number": replies(coverage=float("nan")),
}


@pytest.mark.parametrize("spoil", BAD_MASKS.values(), ids=BAD_MASKS)
async def test_rule_1_a_bad_mask_is_not_applied(stack, telemetry, spoil):
    stack.draft.spoil = spoil
    await in_full(stack, "MASK_REJECTED", telemetry)


@pytest.mark.parametrize("spoil", BAD_MASKS.values(), ids=BAD_MASKS)
async def test_rule_1_a_bad_mask_is_not_cached(stack, spoil):
    stack.draft.spoil = spoil
    await in_full(stack, "MASK_REJECTED")
    stack.draft.spoil = lambda reply, request: None
    answer = await stack.ask(LONG, spans=[(50, 52)])
    assert (answer.route, answer.cache) == ("SPEC_PC", "MISS")


@pytest.mark.parametrize("spoil", BAD_MASKS.values(), ids=BAD_MASKS)
async def test_explain_does_not_blame_the_caller_for_a_bad_mask(stack, spoil):
    stack.draft.spoil = spoil
    prompt = wire_prompt(LONG, [(50, 52)])
    refusal = await refusal_of(stack.stub.Explain(orchestrator_pb2.ExplainRequest(prompt=prompt)))
    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "DRAFT_UNAVAILABLE")


class OddStore:
    """A store whose value verifies and yet does not fit the prompt: another version's, say."""

    is_available = True

    def __init__(self, indices, prompt_tokens):
        mask = token_mask(indices, prompt_tokens)
        self.value = CompressedPrompt(mask, (), 0.5, model_from_wire(model("draft")))
        self.stored = []

    async def get(self, digest):
        return self.value

    async def put(self, digest, value):
        self.stored.append(value.mask.indices.tolist())

    async def aclose(self):
        return None


ODD = {"drops the window": ([0, 50, 51], 100), "other length": (KEPT, 101), "over budget": (range(100), 100)}


@pytest.mark.parametrize("held", ODD.values(), ids=ODD)
async def test_rule_1_a_cached_mask_is_checked_too_and_replaced(open_stack, held):
    stack = await open_stack(store=OddStore(*held))
    answer = await stack.ask(LONG, spans=[(50, 52)])
    assert (answer.route, answer.cache) == ("SPEC_PC", "MISS")
    assert list(stack.target.calls[0].token_ids) == [LONG[i] for i in KEPT]
    assert stack.store.stored == [KEPT]


FAULTS = {
    "unavailable": (aborts(grpc.StatusCode.UNAVAILABLE), "DRAFT_UNAVAILABLE"),
    "internal": (raises(RuntimeError("a defect")), "DRAFT_UNAVAILABLE"),
    "unimplemented": (aborts(grpc.StatusCode.UNIMPLEMENTED), "DRAFT_UNAVAILABLE"),
    "cancelled by itself": (aborts(grpc.StatusCode.CANCELLED), "DRAFT_UNAVAILABLE"),
    "prompt too long for it": (raises(PromptTooLong("token_ids", 100, "<= 50")), "DRAFT_CONTEXT_TOO_SMALL"),
    "policy unknown to it": (raises(RouteUnsupported("policy", "spec_pc", "none")), "DRAFT_UNAVAILABLE"),
    "overloaded": (raises(Overloaded("queue", 9, 8, 2.0)), "DRAFT_OVERLOADED"),
    "deadline": (aborts(grpc.StatusCode.DEADLINE_EXCEEDED), "DRAFT_TIMEOUT"),
}


@pytest.mark.parametrize(("fault", "reason"), FAULTS.values(), ids=FAULTS)
async def test_rule_2_a_failing_draft_ends_in_the_full_context(stack, telemetry, fault, reason):
    stack.draft.faults.extend([fault] * 3)  # gRPC tries UNAVAILABLE three times
    await in_full(stack, reason, telemetry)


async def test_rule_2_unavailable_is_retried_before_it_counts_as_a_failure(stack):
    stack.draft.faults.append(aborts(grpc.StatusCode.UNAVAILABLE))
    assert (await stack.ask(LONG)).route == "SPEC_PC"
    assert len(stack.draft.calls) == 2


async def test_rule_2_slow_draft(open_stack, telemetry):
    stack = await open_stack(draft_timeout_s=0.1)
    stack.draft.faults.append(hangs)
    await in_full(stack, "DRAFT_TIMEOUT", telemetry)


async def test_rule_2_draft_dies_later(stack, telemetry):
    await stack.ask(LONG)
    await stack.draft_server.grpc.stop(0)
    await in_full(stack, "DRAFT_UNAVAILABLE", telemetry)


async def test_rule_2_draft_away_from_the_start(open_stack, telemetry):
    stack = await open_stack(draft_up=False)
    await in_full(stack, "DRAFT_UNAVAILABLE", telemetry)
    info = await stack.stub.GetInfo(orchestrator_pb2.GetInfoRequest())
    assert not info.HasField("draft")


CHANGES = {
    "revision": {"revision": "r2"},
    "model": {"id": "another"},
    "fingerprint": {"tokenizer_fingerprint": "f2"},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_rule_2_changed_draft(stack, telemetry, change):
    stack.draft.model = model("draft", **change) if "id" not in change else model("another")
    await in_full(stack, "DRAFT_CHANGED", telemetry)


async def test_rule_2_changed_revision_is_learnt(stack):
    await stack.ask(LONG)
    stack.draft.model = model("draft", revision="r2")
    other = [token_id + 1 for token_id in LONG]
    assert (await stack.ask(other)).reason == "DRAFT_CHANGED"
    await stack.settle(lambda: stack.models.draft is not None)
    answer = await stack.ask(LONG)
    assert (answer.route, answer.cache, answer.decision.draft.revision) == ("SPEC_PC", "MISS", "r2")


async def test_rule_2_explain_learns_of_a_changed_draft_too(stack):
    stack.draft.model = model("draft", revision="r2")
    request = orchestrator_pb2.ExplainRequest(prompt=wire_prompt(LONG))
    assert (await refusal_of(stack.stub.Explain(request))).reason == "DRAFT_UNAVAILABLE"
    await stack.settle(lambda: stack.models.draft is not None)
    assert (await stack.stub.Explain(request)).decision.draft.revision == "r2"


async def test_rule_2_unknown_fingerprint_is_not_learnt(stack):
    stack.draft.model = model("draft", tokenizer_fingerprint="f2")
    await in_full(stack, "DRAFT_CHANGED")
    await in_full(stack, "DRAFT_UNAVAILABLE")
    assert stack.models.draft is None
    stack.draft.model = model("draft")
    await stack.settle(lambda: stack.models.draft is not None)
    assert (await stack.ask(LONG)).route == "SPEC_PC"


async def test_rule_2_is_an_error_only_where_the_full_prompt_cannot_fit(stack, caplog):
    stack.draft.faults.append(raises(Overloaded("queue", 9, 8, 2.0)))
    refusal = await stack.refused([1] * 450)
    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "DRAFT_UNAVAILABLE")
    assert "450" in refusal.message and stack.target.calls == []
    assert "answered in full" not in caplog.text and "refused: draft_overloaded" in caplog.text


async def test_rule_2_strict_wants_no_full_prompt(stack):
    stack.draft.faults.append(raises(Overloaded("queue", 9, 8, 2.0)))
    refusal = await stack.refused(LONG, budget={"max_prompt_tokens": 20, "strict": True})
    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "DRAFT_UNAVAILABLE")
    assert stack.target.calls == []


async def test_rule_3_nothing_short_is_compressed_whatever_is_asked(stack):
    for route in (plan_pb2.ROUTE_AUTO, plan_pb2.ROUTE_SPEC_PC):
        answer = await stack.ask(LONG[:32], route=route, budget={"max_prompt_tokens": 10})
        assert (answer.route, answer.reason) == ("FULL", "BELOW_THRESHOLD")
    assert stack.draft.calls == []


async def test_rule_4_protected_over_budget(stack):
    answer = await stack.ask(LONG, spans=[(0, CAPACITY - WINDOW + 1)])
    assert (answer.route, answer.reason) == ("FULL", "PROTECTED_OVER_BUDGET")
    assert "17" in answer.decision.detail and "16" in answer.decision.detail
    assert stack.draft.calls == []


async def test_rule_4_protected_at_the_budget_is_compressed(stack):
    assert (await stack.ask(LONG, spans=[(0, CAPACITY - WINDOW)])).route == "SPEC_PC"


async def test_rule_4_protected_in_the_window_is_not_counted_twice(stack):
    assert (await stack.ask(LONG, spans=[(0, 12), (96, 100)])).route == "SPEC_PC"


async def test_rule_4_strict_is_refused(stack):
    refusal = await stack.refused(LONG, spans=[(0, 20)], budget={"max_prompt_tokens": 20, "strict": True})
    assert (refusal.code, refusal.reason, refusal.field) == ("FAILED_PRECONDITION", "BUDGET_EXCEEDED", "budget")
    assert refusal.value == "100" and "20" in refusal.limit
    assert stack.target.calls == []


async def test_strict_below_the_threshold_is_refused(stack):
    refusal = await stack.refused(LONG[:30], budget={"max_prompt_tokens": 20, "strict": True})
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "BUDGET_EXCEEDED")


class BrokenStore:
    """A failing cache: it accepts every value and finds none."""

    is_available = True

    def __init__(self):
        self.asked = []

    async def get(self, digest):
        self.asked.append(digest)

    async def put(self, digest, value):
        return None

    async def aclose(self):
        return None


async def test_rule_6_broken_store_is_a_miss(open_stack):
    stack = await open_stack(store=BrokenStore())
    for _ in range(2):
        answer = await stack.ask(LONG)
        assert (answer.route, answer.cache) == ("SPEC_PC", "MISS")
    assert len(stack.draft.calls) == 2 and len(stack.store.asked) == 2


async def test_a_cache_that_does_not_answer_is_no_ordinary_miss(open_stack):
    store = BrokenStore()
    stack = await open_stack(store=store)
    for is_available, outcome in ((True, "MISS"), (False, "UNAVAILABLE")):
        store.is_available = is_available
        assert (await stack.ask(LONG)).cache == outcome
        info = await stack.stub.GetInfo(orchestrator_pb2.GetInfoRequest())
        assert info.cache_unavailable is not is_available


async def test_rules_5_and_7_salt_separates_tenants(open_stack):
    first = await open_stack(salt="one")
    second = await open_stack(salt="two", store=first.store)
    assert (await first.ask(LONG)).cache == "MISS"
    assert (await second.ask(LONG)).cache == "MISS"
    assert (await first.ask(LONG)).cache == "HIT"
    assert [call.cache_salt for call in first.target.calls + second.target.calls] == ["one", "one", "two"]


VARIANTS = {
    "token ids": {"prompt": [*LONG[:50], 0, *LONG[51:]]},
    "capacity": {"budget": {"max_prompt_tokens": 17}},
    "protected spans": {"spans": [(3, 4)]},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
async def test_rule_5_what_changes_the_value_changes_the_key(stack, variant):
    await stack.ask(LONG)
    assert (await stack.ask(**{"prompt": LONG} | variant)).cache == "MISS"
    assert (await stack.ask(LONG)).cache == "HIT"


async def test_rule_8_vocabulary_mismatch_is_refused_at_start(build):
    stack = await build(draft=model("draft", tokenizer_fingerprint="aaa111"), target=model("target"))
    with pytest.raises(VocabularyMismatch) as refusal:
        await stack.connect()
    assert "aaa111" in str(refusal.value) and "f1" in str(refusal.value)
    assert refusal.value.details == {"draft": "aaa111", "target": "f1"}


async def test_rule_8_without_tokenizers_the_sizes_must_agree(build):
    bare = {"tokenizer_fingerprint": ""}
    stack = await build(draft=model("draft", vocabulary_size=7, **bare), target=model("target", **bare))
    with pytest.raises(VocabularyMismatch):
        await stack.connect()


async def test_nothing_is_answered_before_the_target_is_known(build):
    stack = await build()
    refusal = await stack.refused(LONG)
    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "TARGET_UNAVAILABLE")


async def test_connect_waits_for_the_target(build, monkeypatch):
    stack = await build()
    info, troubles = stack.remote_target.info, [TargetUnavailable("not yet"), TargetUnavailable("not yet")]

    async def late():
        if troubles:
            raise troubles.pop()
        return await info()

    monkeypatch.setattr(stack.remote_target, "info", late)
    await stack.connect()
    assert not troubles and (await stack.ask([1])).route == "FULL"
