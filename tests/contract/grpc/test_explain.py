"""Explain with the target's part: which KV pairs are kept, told in positions of the prompt."""

import threading

import numpy as np
import pytest

from presift.core.errors import Overloaded
from presift.core.masks import KvMask
from presift.orchestrator.admission.admission import QueueLimits
from presift.orchestrator.backends import target_codec
from presift.orchestrator.pipeline import explainer as explainer_module
from presift.orchestrator.planning import kept_kv as kept_kv_module
from presift.rpc.codec import kv_mask_from_wire
from presift.v1 import orchestrator_pb2, plan_pb2

from ..fakes.clients import CLIENTS
from ..fakes.services import bits, keep, kept_kv, raises
from ..fakes.stack import ALL_ROUTES, CASCADE, KV_CAPACITY, KV_WINDOW, refusal_of, wire_prompt

LONG = list(range(100, 200))
LATER = [*LONG, *range(200, 220)]
KV, KV_PC, PC = plan_pb2.ROUTE_SPEC_KV, plan_pb2.ROUTE_SPEC_KV_PC, plan_pb2.ROUTE_SPEC_PC
MASK = plan_pb2.KV_SELECTION_DRAFT_MASK
PROTECTED = [(50, 52)]


@pytest.fixture
async def stack(open_stack):
    return await open_stack(routes=ALL_ROUTES, salt="tenant")


def request(prompt=LONG, *, kv=None, spans=(), per_token=False, **asked):
    return orchestrator_pb2.ExplainRequest(
        prompt=wire_prompt(prompt, spans),
        kv=orchestrator_pb2.KvOptions(**kv or {}),
        include_kv_mask=True,
        span_per_token=per_token,
        **asked,
    )


async def explained(stack, *args, **asked):
    return await stack.stub.Explain(request(*args, **asked))


def mask_of(told):
    return kv_mask_from_wire(told.kv_mask).kept


async def test_spec_kv_explains_what_every_layer_and_head_keeps(stack):
    told = await explained(stack, route=KV, spans=PROTECTED)
    wanted = kept_kv(100, KV_CAPACITY, KV_WINDOW, spans=PROTECTED)
    assert np.array_equal(mask_of(told), wanted) and told.target_coverage == 0.75
    (call,) = stack.target.calls
    assert call.kv_plan.report_kept and call.kv_plan.keep_full_prefix and call.cache_salt == "tenant"
    assert (call.sampling.max_new_tokens, list(call.token_ids)) == (1, LONG)
    shares = [share for span in told.spans for share in [span.kept_share] * (span.tokens.end - span.tokens.start)]
    assert shares == pytest.approx(wanted.mean(axis=(0, 1)).tolist())
    assert all(span.kept == (span.kept_share > 0) for span in told.spans)
    assert {span.kept_share for span in told.spans if span.protected} == {1.0}


async def test_the_plan_is_that_of_generate(stack):
    await explained(stack, route=KV, spans=PROTECTED)
    answer = await stack.ask(LONG, route=KV, spans=PROTECTED)
    told, asked = (call.kv_plan for call in stack.target.calls)
    told.report_kept = False
    assert told == asked and answer.usage.reused_entry


async def test_a_reused_entry_is_made_again_where_nobody_finds_it(stack):
    await stack.ask(LONG, route=KV)
    first, second = [await explained(stack, route=KV) for _ in range(2)]
    assert first.kv_mask == second.kv_mask and first.target_coverage == second.target_coverage == 0.75
    assert np.array_equal(mask_of(first), kept_kv(100, KV_CAPACITY, KV_WINDOW))
    _, *calls = stack.target.calls
    salts = [call.cache_salt for call in calls]
    assert salts[0] == salts[2] == "tenant" and len(set(salts)) == 3
    assert [call.kv_plan.keep_full_prefix for call in calls] == [True, False, True, False]
    assert all(call.sampling.max_new_tokens == 1 for call in calls)


async def test_spec_kv_pc_explains_in_positions_of_the_prompt(stack):
    told = await explained(stack, route=KV_PC, spans=PROTECTED)
    read = keep(100, CASCADE, 4, PROTECTED)
    wanted = np.zeros((4, 2, 100), dtype=bool)
    wanted[:, :, read] = kept_kv(CASCADE, KV_CAPACITY, KV_WINDOW, spans=[(read.index(50), read.index(52 - 1) + 1)])
    assert np.array_equal(mask_of(told), wanted)
    kept = {i for span in told.spans if span.kept for i in range(span.tokens.start, span.tokens.end)}
    assert kept == set(np.flatnonzero(wanted.any(axis=(0, 1)))) and kept < set(read)


async def test_a_draft_mask_is_what_is_kept(stack):
    for _ in range(2):  # made, and found again: the target is asked once each time
        told = await explained(stack, route=KV, kv={"selection": MASK})
        assert (told.kv_mask.layers, told.kv_mask.kv_heads) == (1, 1)
        assert told.kv_mask.kept == bits(keep(100, KV_CAPACITY + 1, KV_WINDOW + 1), 100)
    assert len(stack.target.calls) == 2


async def test_a_later_turn_keeps_all_that_came_since(stack):
    await stack.ask(LONG, route=KV)
    told = await explained(stack, LATER, route=KV, kv={"continue_prompt_tokens": 100})
    kept = mask_of(told)
    assert told.decision.continued and kept[:, :, 100:].all()
    assert np.array_equal(kept[:, :, :100], kept_kv(100, KV_CAPACITY, KV_WINDOW))


@pytest.mark.parametrize("route", [PC, plan_pb2.ROUTE_FULL])
async def test_routes_that_drop_no_kv_do_not_ask_the_target(stack, route):
    told = await explained(stack, route=route)
    assert not told.HasField("kv_mask") and not told.HasField("target_coverage") and stack.target.calls == []
    assert not any(span.HasField("kept_share") for span in told.spans)


async def test_explain_without_kv_mask_does_not_call_the_target(stack):
    told = await stack.stub.Explain(orchestrator_pb2.ExplainRequest(prompt=wire_prompt(LONG), route=KV))
    assert not told.HasField("kv_mask") and stack.target.calls == []


async def test_a_target_that_does_not_say_is_no_error(stack):
    stack.target.reports = False
    told = await explained(stack, route=KV)
    assert not told.HasField("kv_mask") and len(stack.target.calls) == 1


@pytest.mark.parametrize("spoiled", [{"prompt_tokens": 92, "kept": bytes(8 * 12)}, {"kept": b"\xff"}])
async def test_a_bad_mask_is_the_targets_fault(stack, spoiled):
    def spoil(usage):
        for name, value in spoiled.items():
            setattr(usage.kv_mask, name, value)

    stack.target.spoil = spoil
    refusal = await refusal_of(explained(stack, route=KV))
    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "TARGET_UNAVAILABLE")


async def test_a_mask_that_is_too_large_is_refused_before_it_is_unpacked(stack, monkeypatch):
    kept = kept_kv(100, KV_CAPACITY, KV_WINDOW)
    size = kept.shape[0] * kept.shape[1] * 13
    monkeypatch.setattr(target_codec, "MAX_KV_MASK_BYTES", size)
    await explained(stack, route=KV)
    monkeypatch.setattr(target_codec, "MAX_KV_MASK_BYTES", size - 1)
    monkeypatch.setattr(KvMask, "from_bits", None)
    refusal = await refusal_of(explained(stack, route=KV))
    assert (refusal.code, refusal.field) == ("INVALID_ARGUMENT", "include_kv_mask")
    assert (refusal.value, refusal.limit) == (f"a mask of {size} bytes", f"at most {size - 1} bytes")


async def test_a_mask_is_unpacked_once_and_in_a_thread(stack, monkeypatch):
    unpacked, placed = [], []
    from_bits, in_prompt = KvMask.from_bits, kept_kv_module.in_prompt

    def unpack(*args):
        unpacked.append(threading.current_thread())
        return from_bits(*args)

    def place(*args):
        placed.append(threading.current_thread())
        return in_prompt(*args)

    monkeypatch.setattr(KvMask, "from_bits", unpack)
    monkeypatch.setattr(kept_kv_module, "in_prompt", place)
    assert (await explained(stack, route=KV)).HasField("kv_mask")
    assert len(unpacked) == len(placed) == 1
    assert threading.main_thread() not in (*unpacked, *placed)


async def test_what_the_target_refuses_reaches_the_caller(stack):
    stack.target.faults.append(raises(Overloaded("waiting", 9, 8, retry_after_s=1.5)))
    assert (await refusal_of(explained(stack, route=KV))).retry_after_s == 1.5


async def test_the_rendered_text_comes_with_it(stack):
    chat = [("system", "be brief"), ("user", "ü" * 60), ("user", "why?")]
    told = await explained(stack, chat, route=PC, budget=orchestrator_pb2.Budget(max_prompt_tokens=90))
    assert told.text == f"<system>be brief</system><user>{'ü' * 60}</user><user>why?</user><assistant>"
    assert told.spans[-1].characters.end == len(told.text)
    assert (await explained(stack, route=PC)).text == ""


async def test_the_text_counts_as_text_that_is_tokenized_again(stack, monkeypatch):
    sizes, run = [], stack.tokenizer.limit.run

    def counted(work, size):
        sizes.append(size)
        return run(work, size)

    monkeypatch.setattr(stack.tokenizer.limit, "run", counted)
    told = await explained(stack, "the quick brown fox " * 8)
    assert sizes == [told.decision.prompt_tokens]


async def test_a_span_of_every_token(stack):
    told = await explained(stack, "z" * 40, per_token=True, route=PC)
    assert [(span.tokens.start, span.tokens.end) for span in told.spans] == [(i, i + 1) for i in range(40)]
    assert [span.importance for span in told.spans] == pytest.approx([i / sum(range(40)) for i in range(40)])
    assert [i for i, span in enumerate(told.spans) if span.kept] == keep(40, 16, 4)


class Rendering:
    """Explanations that are made in threads until `gate` opens."""

    def __init__(self, monkeypatch):
        self.gate, self.running, self.most, self._explain = threading.Event(), 0, 0, explainer_module.explain
        monkeypatch.setattr(explainer_module, "explain", self)

    def __call__(self, *args, **options):
        self.running += 1
        self.most = max(self.most, self.running)
        self.gate.wait(10)
        self.running -= 1
        return self._explain(*args, **options)


async def test_explanations_are_made_one_at_a_time_while_others_are_answered(open_stack, monkeypatch):
    stack = await open_stack(limits=QueueLimits(max_running=2))
    rendering, explaining = Rendering(monkeypatch), stack.pipeline.parts.explaining
    plain = orchestrator_pb2.ExplainRequest(prompt=wire_prompt(LONG))
    calls = [stack.stub.Explain(plain)]
    await stack.settle(lambda: rendering.running == 1)
    calls += [stack.stub.Explain(plain) for _ in range(3)]
    await stack.settle(lambda: explaining.waiting == 3)
    assert (await stack.ask([4, 5])).token_ids == [5, 4]
    calls[0].cancel()
    await stack.settle(calls[0].done)
    assert (await stack.ask([4, 5])).token_ids == [5, 4]  # by now, the server knows
    # A thread cannot be cancelled: what it holds counts until it has ended.
    assert (explaining.running, explaining.waiting, rendering.most) == (1, 3, 1)
    rendering.gate.set()
    told = [await call for call in calls[1:]]
    assert rendering.most == 1 and all(each.spans == told[0].spans for each in told)
    await stack.settle(lambda: not explaining.running)


async def test_a_slow_target_delays_no_explanation_without_its_mask(stack):
    stack.target.pause_after = 1
    masks = stack.pipeline.parts.reading_masks
    calls = [stack.stub.Explain(request(route=KV)) for _ in range(3)]
    await stack.settle(lambda: (masks.running, masks.waiting) == (1, 2) and stack.target.running == 1)
    told = await stack.stub.Explain(orchestrator_pb2.ExplainRequest(prompt=wire_prompt(LONG)))
    assert told.spans and stack.admission.running == 1
    for call in calls:
        call.cancel()
    await stack.settle(lambda: not (masks.running or masks.waiting or stack.target.running))


@pytest.mark.parametrize("kind", CLIENTS.values(), ids=CLIENTS)
async def test_the_clients_read_it_all(stack, kind):
    client = kind(stack.address)
    told = await client.explain(token_ids=LONG, route="spec_kv", include_kv_mask=True, protected_spans=PROTECTED)
    wanted = kept_kv(100, KV_CAPACITY, KV_WINDOW, spans=PROTECTED)
    assert (told.kv_mask.layers, told.kv_mask.kv_heads, told.kv_mask.prompt_tokens) == (4, 2, 100)
    for layer, head in np.ndindex(4, 2):
        assert told.kv_mask.kept(layer, head) == np.flatnonzero(wanted[layer, head]).tolist()
    assert told.target_coverage == 0.75 and told.decision.route == "spec_kv"
    assert sum(span.tokens for span in told.spans) == 100 and told.spans[0].characters is None
    plain = await client.explain("z" * 40, max_prompt_tokens=16)
    assert plain.text == "z" * 40 and plain.kv_mask is plain.target_coverage is None
    assert [(span.characters, span.kept, span.kept_share) for span in plain.spans] == [
        ((0, 12), True, None),
        ((12, 36), False, None),
        ((36, 40), True, None),
    ]
    await client.aclose()


@pytest.mark.parametrize("route", [plan_pb2.ROUTE_UNSPECIFIED, PC])
async def test_the_routes_that_there_were(stack, route):
    budget = orchestrator_pb2.Budget(max_prompt_tokens=50, max_kv_tokens=KV_CAPACITY)
    told = await explained(stack, route=route, budget=budget)
    routes = {each.route: each for each in told.routes}
    assert [each.route for each in told.routes] == [plan_pb2.ROUTE_FULL, KV, KV_PC, PC]
    assert [each.route for each in told.routes if each.chosen] == [told.decision.route]
    full, chosen = routes[plan_pb2.ROUTE_FULL], routes[told.decision.route]
    assert (full.met, full.read_tokens, full.kv_tokens) == (False, 100, 100)
    assert "100 prompt tokens of 50" in full.why_not and full.ttft_ms > full.target_ms > 0
    assert chosen.met and not chosen.why_not and chosen.kv_tokens == told.decision.kv_tokens


async def test_a_route_that_cannot_be_has_no_costs(open_stack):
    stack = await open_stack()
    told = await stack.stub.Explain(orchestrator_pb2.ExplainRequest(prompt=wire_prompt(LONG), route=PC))
    (kv,) = (each for each in told.routes if each.route == KV)
    assert kv.why_not == "is not served here" and not kv.HasField("ttft_ms") and not kv.HasField("read_tokens")


async def test_a_turn_that_goes_on_had_no_choice(stack):
    await stack.ask(LONG, route=KV)
    told = await explained(stack, LATER, route=KV, kv={"continue_prompt_tokens": len(LONG)})
    assert told.decision.continued and not told.routes


async def test_room_is_left_for_the_answer_that_is_asked_about(stack):
    assert (await explained(stack, route=PC, max_new_tokens=2**31)).decision.route == PC
    refusal = await refusal_of(explained(stack, max_new_tokens=0))
    assert refusal.field == "sampling.max_new_tokens" and refusal.limit == ">= 1"
    assert (await explained(stack, route=PC, max_new_tokens=1)).decision.route == PC
