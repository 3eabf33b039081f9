"""A draft of another vocabulary, on the wire: four characters a token, where the target reads bytes."""

import pytest

from presift.core.errors import PromptTooLong, VocabularyMismatch
from presift.orchestrator.prompt.vocabulary_bridge import VocabularyBridge
from presift.v1 import orchestrator_pb2, plan_pb2

from ..fakes.services import bits, model, raises
from ..fakes.stack import ALL_ROUTES, CAPACITY, KV_CAPACITY, LOOKAHEAD, WINDOW, byte_tokenizer, quad_tokenizer
from ..fakes.stack import wire_prompt as prompt_of

TEXT = "".join(chr(ord("a") + number // 4) for number in range(100))  # 100 bytes, 25 of the draft's tokens
FINGERPRINT = VocabularyBridge(byte_tokenizer(), quad_tokenizer()).draft_fingerprint
KV, KV_PC, PC = plan_pb2.ROUTE_SPEC_KV, plan_pb2.ROUTE_SPEC_KV_PC, plan_pb2.ROUTE_SPEC_PC
MASK = plan_pb2.KV_SELECTION_DRAFT_MASK
# The fake's importance grows with the position: what is kept are the last tokens. Without the carrying over, the first.
LAST = list(range(100 - CAPACITY, 100))


def ids_of(text):
    return byte_tokenizer().encode(text).ids


@pytest.fixture
def options():
    return {
        "draft": model("draft", tokenizer_fingerprint=FINGERPRINT),
        "draft_tokenizer": quad_tokenizer(),
        "routes": ALL_ROUTES,
    }


@pytest.fixture
async def stack(open_stack, options):
    stack = await open_stack(**options)
    stack.draft.spoil = lambda reply, request: says_yes(reply)
    return stack


def says_yes(reply):
    """The fake's lookahead in the draft's tokens: " yes" and "!"."""
    if reply.lookahead_token_ids:
        reply.lookahead_token_ids[:] = [1, 2]


async def test_spec_pc(stack):
    answer = await stack.ask(TEXT, route=PC)
    assert (answer.route, answer.reason, answer.cache) == ("SPEC_PC", "REQUESTED", "MISS")
    assert list(stack.target.calls[0].token_ids) == ids_of(TEXT[-CAPACITY:])
    (asked,) = stack.draft.calls
    assert list(asked.token_ids) == [0] * 25 and asked.include_importance
    assert asked.policy.spec_pc.window == WINDOW // 4
    decision = answer.decision
    assert decision.cross_vocabulary
    assert decision.coverage == pytest.approx(sum(at // 4 for at in LAST) / sum(at // 4 for at in range(100)))
    assert (decision.prompt_tokens, decision.kept_tokens) == (100, CAPACITY)
    assert decision.policy.spec_pc.window == WINDOW  # in the target's tokens
    assert (decision.draft, decision.target) == (stack.draft.model, stack.target.model)


async def test_spec_kv_gets_the_lookahead_in_its_own_tokens(stack):
    answer = await stack.ask(TEXT, route=KV)
    assert answer.decision.cross_vocabulary and not stack.draft.calls[0].include_importance
    plan = stack.target.calls[0].kv_plan
    assert list(plan.lookahead_token_ids) == ids_of(" yes!")[:LOOKAHEAD]


async def test_spec_kv_pc(stack):
    await stack.ask(TEXT, route=KV_PC)
    (call,) = stack.target.calls
    assert list(call.token_ids) == ids_of(TEXT[-24:])
    assert list(call.kv_plan.lookahead_token_ids) == ids_of(" yes!")[:LOOKAHEAD]


async def test_draft_mask(stack):
    await stack.ask(TEXT, route=KV, kv={"selection": MASK})
    mask = stack.target.calls[0].kv_plan.kv_mask
    # The tokens of one of the draft's are equals, of which the first is taken.
    assert mask.kept == bits([88, 89, 90, *range(92, 100)], 100)
    assert KV_CAPACITY + 1 == 11


async def test_it_is_cached_under_a_key_of_its_own(stack, open_stack):
    store = stack.store
    assert [(await stack.ask(TEXT)).cache for _ in range(2)] == ["MISS", "HIT"]
    # The same draft, ids, policy and store for a target whose ids mean another text.
    other = await open_stack(
        draft=stack.draft.model,
        draft_tokenizer=quad_tokenizer(),
        routes=ALL_ROUTES,
        store=store,
        target=model("target", tokenizer_fingerprint="f3"),
    )
    assert (await other.ask(TEXT)).cache == "MISS"


async def test_explain_says_importance_of_the_targets_tokens(stack):
    for route in (PC, KV):
        request = orchestrator_pb2.ExplainRequest(prompt=prompt_of(TEXT), route=route, span_per_token=True)
        told = await stack.stub.Explain(request)
        assert told.decision.cross_vocabulary
        shares = [span.importance for span in told.spans]
        assert shares == pytest.approx([at // 4 / 4 / 300 for at in range(100)], abs=1e-6)


async def test_ids_that_are_of_no_text_are_answered_in_full(stack):
    ids = ids_of("ü" * 60)[1:]
    answer = await stack.ask(ids)
    assert (answer.route, answer.reason) == ("FULL", "DRAFT_UNAVAILABLE")
    assert "text" in answer.decision.detail and not answer.decision.cross_vocabulary
    assert stack.draft.calls == [] and list(stack.target.calls[0].token_ids) == ids


async def test_ids_of_a_text_are_read_as_that_text(stack):
    answer = await stack.ask(ids_of(TEXT), spans=[(0, 3)])
    assert answer.decision.cross_vocabulary and answer.decision.protected_tokens == 3
    assert list(stack.target.calls[0].token_ids)[:3] == ids_of(TEXT)[:3]


async def test_the_drafts_own_context_holds(stack):
    stack.draft.faults.append(raises(PromptTooLong("token_ids", "25 tokens", "<= 20")))
    answer = await stack.ask(TEXT)
    assert (answer.route, answer.reason) == (
        "FULL",
        "DRAFT_CONTEXT_TOO_SMALL",
    ) and "25 tokens" in answer.decision.detail


async def test_importance_of_another_prompt_is_rejected(stack):
    stack.draft.spoil = lambda reply, request: reply.importance.pop()
    answer = await stack.ask(TEXT)
    assert (answer.route, answer.reason) == ("FULL", "MASK_REJECTED")


@pytest.mark.parametrize("fingerprint", ["aaa111", "f1", ""])
async def test_another_draft_is_refused_at_start(build, options, fingerprint):
    stack = await build(**options | {"draft": model("draft", tokenizer_fingerprint=fingerprint)})
    with pytest.raises(VocabularyMismatch) as refusal:
        await stack.connect()
    assert refusal.value.details == {"orchestrator": FINGERPRINT, "draft": fingerprint}


async def test_a_draft_that_changes_its_vocabulary_is_not_believed(stack):
    stack.draft.model = model("draft")
    answer = await stack.ask(TEXT)
    assert (answer.route, answer.reason) == ("FULL", "DRAFT_CHANGED")


async def test_one_vocabulary_is_not_called_two(open_stack):
    stack = await open_stack()
    answer = await stack.ask(TEXT)
    assert answer.decision.draft.id and not answer.decision.cross_vocabulary
