"""Draft and target that speak presift.v1 and whose every answer can be computed by hand; both do harm on request."""

import asyncio
import math
from collections import deque

import numpy as np

from presift.core import kv_plan
from presift.core.errors import InvalidRequest, PresiftError, RouteUnsupported
from presift.core.masks import KvMask
from presift.rpc.codec import kv_mask_to_wire, kv_plan_from_wire
from presift.v1 import draft_pb2, draft_pb2_grpc, plan_pb2, target_pb2, target_pb2_grpc

VOCABULARY, CONTEXT = 1000, 400
# The fake draft reads whatever it is sent.
DRAFT_CONTEXT = 1 << 20


def model(name, **changes):
    values = {
        "id": name,
        "revision": "r1",
        "tokenizer_fingerprint": "f1",
        "context_tokens": CONTEXT,
        "layers": 4,
        "kv_heads": 2,
        "vocabulary_size": VOCABULARY,
    }
    return plan_pb2.ModelInfo(**values | changes)


def keep(prompt_tokens, capacity, window, spans=()):
    """The fake draft's choice, ascending: protected spans and window, then the first tokens up to the capacity."""
    must = {i for start, end in spans for i in range(start, end)} | set(range(prompt_tokens - window, prompt_tokens))
    rest = [i for i in range(prompt_tokens) if i not in must]
    return sorted([*must, *rest[: capacity - len(must)]])


def adapted(prompt_tokens, policy, on_top=0):
    """How many tokens the fake draft keeps by `policy` (of the wire), whose coverage is the share of tokens kept."""
    most = policy.capacity + on_top
    if not policy.HasField("adaptive") or prompt_tokens <= most:
        return most
    needed = math.ceil(round(policy.adaptive.coverage * prompt_tokens, 3))
    sizes = range(policy.adaptive.min_capacity + on_top, most, policy.adaptive.step or 1)
    return next((size for size in sizes if size >= needed), most)


def counted(read_tokens, policy):
    """The fake draft's KV capacity for so many tokens read; None where the policy does not adapt or all of them fit."""
    if not policy.HasField("adaptive") or read_tokens <= policy.capacity + 1:
        return None
    return adapted(read_tokens, policy, 1) - 1


def bits(indices, prompt_tokens):
    flags = np.zeros(prompt_tokens, dtype=bool)
    flags[list(indices)] = True
    return np.packbits(flags, bitorder="little").tobytes()


def lookahead(count):
    """The fake draft's continuation of any prompt."""
    return [900 + i for i in range(count)]


def kept_kv(prompt_tokens, capacity, window, *, spans=(), layers=4, kv_heads=2):
    """The fake target's choice, bool[layers, kv_heads, prompt_tokens]: the final token, window and protected spans,
    then the first tokens from number `layer * kv_heads + head` of the others on, up to the capacity."""
    protected = {i for start, end in spans for i in range(start, end)}
    must = protected | set(range(prompt_tokens - 1 - window, prompt_tokens))
    rest = [i for i in range(prompt_tokens) if i not in must]
    kept = np.zeros((layers, kv_heads, prompt_tokens), dtype=bool)
    kept[:, :, sorted(must)] = True
    for row in range(layers * kv_heads):
        kept[row // kv_heads, row % kv_heads, rest[row : row + capacity + 1 - len(must)]] = True
    return kept


class FakeDraft(draft_pb2_grpc.DraftServiceServicer):
    """Coverage is the share of tokens kept, importance of token i is i. `faults` act on the calls to come, one each,
    before they are answered; `spoil` changes every reply. Nothing is answered while `gate` is closed. `cancelled`
    counts the calls that were cancelled, `answered` those that were answered."""

    def __init__(self, model):
        self.model = model
        self.calls, self.faults = [], deque()
        self.spoil = lambda reply, request: None
        self.gate = asyncio.Event()
        self.gate.set()
        self.cancelled = self.answered = 0

    async def Score(self, request, context):
        self.calls.append(request)
        try:
            await self.gate.wait()
            if self.faults:
                await self.faults.popleft()(context)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        reply = self._answer(request)
        self.spoil(reply, request)
        self.answered += 1
        return reply

    def _answer(self, request):
        policy, prompt_tokens = request.policy, len(request.token_ids)
        spans = [(span.start, span.end) for span in request.protected_spans]
        kind, ahead, kept, kv_capacity = policy.WhichOneof("policy"), 0, None, None
        if kind == "spec_kv_pc":
            first, second = policy.spec_kv_pc.prompt, policy.spec_kv_pc.kv
            kept = keep(prompt_tokens, adapted(prompt_tokens, first), first.window, spans)
            ahead, kv_capacity = second.lookahead_tokens, counted(len(kept), second)
        elif kind == "spec_pc":
            kept = keep(prompt_tokens, adapted(prompt_tokens, policy.spec_pc), policy.spec_pc.window, spans)
        elif policy.spec_kv.selection == plan_pb2.KV_SELECTION_DRAFT_MASK:
            kept = keep(prompt_tokens, adapted(prompt_tokens, policy.spec_kv, 1), policy.spec_kv.window + 1, spans)
        else:
            ahead, kv_capacity = policy.spec_kv.lookahead_tokens, counted(prompt_tokens, policy.spec_kv)
        read = prompt_tokens if kept is None else len(kept)
        mask = bits(range(prompt_tokens) if kept is None else kept, prompt_tokens)
        reply = draft_pb2.ScoreResponse(
            token_mask=plan_pb2.TokenMask(prompt_tokens=prompt_tokens, kept=mask),
            lookahead_token_ids=lookahead(ahead),
            coverage=None if kept is None else len(kept) / prompt_tokens,
            importance=range(prompt_tokens) if request.include_importance else (),
            model=self.model,
            kv_capacity=kv_capacity,
            kv_coverage=None if kv_capacity is None else (kv_capacity + 1) / read,
        )
        if kind == "spec_kv" and kept is not None:
            reply.kv_mask.CopyFrom(plan_pb2.KvMask(layers=1, kv_heads=1, prompt_tokens=prompt_tokens, kept=mask))
        return reply

    async def GetInfo(self, request, context):
        return draft_pb2.DraftServiceGetInfoResponse(model=self.model, supported_routes=[plan_pb2.ROUTE_SPEC_PC])


class FakeTarget(target_pb2_grpc.TargetServiceServicer):
    """Answers with the prompt reversed, or what `answer` says, a token at a time. After `pause_after` tokens it waits
    for `gate`; after `die_after` it fails. `cancelled` counts the requests that were cancelled.

    With a KV plan it holds it against the contract and says what the selection of that many KV pairs would use, and
    which they are (`kept_kv`) where that is asked for; `spoil` changes every usage, `reports` off leaves it unsaid. A
    `delta` makes each piece, `abilities` are further fields of GetInfo. A
    prompt that Prefill has read is cached but for its final token; of others three tokens are. `prefill_faults` act on
    the Prefills to come, `prefills_cancelled` counts those that were cancelled."""

    def __init__(
        self,
        model,
        routes=(plan_pb2.ROUTE_FULL, plan_pb2.ROUTE_SPEC_PC),
        kv_page_tokens=0,
        unsupported=(),
        kv_pool_tokens=0,
        *,
        abilities=None,
    ):
        self.model, self.routes = model, routes
        self.kv_page_tokens, self.unsupported, self.kv_pool_tokens = kv_page_tokens, unsupported, kv_pool_tokens
        self.prefills, self.prefill_faults, self.prefills_cancelled = [], deque(), 0
        self.entries, self.prefixes = set(), set()
        self.calls, self.faults = [], deque()
        self.pause_after = self.die_after = None
        self.with_usage = self.reports = True
        self.spoil = lambda usage: None
        self.answer = lambda request: request.token_ids[::-1]
        self.delta = lambda request, token_id: target_pb2.TokenDelta(token_ids=[token_id])
        self.abilities = abilities or {}
        self.running = self.cancelled = 0
        self.replica = ""
        self.gate = asyncio.Event()

    async def Generate(self, request, context):
        self.calls.append(request)
        self.running += 1
        try:
            if self.faults:
                await self.faults.popleft()(context)
            if request.HasField("kv_plan"):
                check_plan(request, self.routes, self.kv_page_tokens or 1)
            async for event in self._answer(request, context):
                yield event
        except (asyncio.CancelledError, GeneratorExit):  # cancelled while it waits, or between two events
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def _answer(self, request, context):
        answer = self.answer(request)[: request.sampling.max_new_tokens]
        for number, token_id in enumerate(answer, 1):
            yield target_pb2.TargetServiceGenerateResponse(delta=self.delta(request, token_id))
            if number == self.pause_after:
                await self.gate.wait()
            if number == self.die_after:
                raise RuntimeError("the engine died")
        if not self.with_usage:
            return
        usage = target_pb2.TargetUsage(
            prompt_tokens=len(request.token_ids),
            kv_tokens=len(request.token_ids),
            cached_tokens=len(request.token_ids) - 1 if _prefix(request) in self.prefixes else 3,
            completion_tokens=len(answer),
            finish_reason=target_pb2.FINISH_REASON_LENGTH,
            ttft_ms=7.0,
            replica=self.replica,
        )
        if request.HasField("kv_plan"):
            usage.MergeFrom(self._selected(request))
        self.spoil(usage)
        yield target_pb2.TargetServiceGenerateResponse(usage=usage)

    def _selected(self, request):
        plan, tokens = request.kv_plan, len(request.token_ids)
        covered = plan.prompt_tokens or tokens
        capacity = min(plan.policy.capacity, covered - 1)
        identity = target_pb2.KvPlan()
        identity.CopyFrom(plan)
        for field in ("keep_full_prefix", "prompt_tokens", "report_kept"):
            identity.ClearField(field)
        for field in ("renew_every", "renew_window"):
            identity.policy.ClearField(field)
        entry = request.cache_salt, tuple(request.token_ids[:covered]), identity.SerializeToString()
        usage = target_pb2.TargetUsage(kv_tokens=capacity + 1 + tokens - covered, coverage=0.75)
        if plan.policy.first_full_tokens:
            return usage
        if entry in self.entries:
            return target_pb2.TargetUsage(kv_tokens=usage.kv_tokens, cached_tokens=capacity, reused_entry=True)
        self.entries.add(entry)
        usage.score_ms, usage.publish_ms = 11.0, 4.0
        if plan.report_kept and self.reports:
            usage.kv_mask.CopyFrom(self._kv_mask(plan, covered))
        return usage

    def _kv_mask(self, plan, covered):
        if plan.HasField("kv_mask"):
            return plan.kv_mask
        spans = [(span.start, span.end) for span in plan.protected_spans]
        shape = {"layers": self.model.layers, "kv_heads": self.model.kv_heads}
        return kv_mask_to_wire(KvMask(kept_kv(covered, plan.policy.capacity, plan.policy.window, spans=spans, **shape)))

    async def Prefill(self, request, context):
        self.prefills.append(request)
        try:
            if self.prefill_faults:
                await self.prefill_faults.popleft()(context)
        except asyncio.CancelledError:
            self.prefills_cancelled += 1
            raise
        self.prefixes.add(_prefix(request))
        return target_pb2.PrefillResponse(cached_tokens=0, total_ms=5.0)

    async def GetInfo(self, request, context):
        return target_pb2.TargetServiceGetInfoResponse(
            model=self.model,
            supported_routes=self.routes,
            running_requests=self.running,
            kv_page_tokens=self.kv_page_tokens,
            kv_pool_tokens=self.kv_pool_tokens,
            replica=self.replica,
            unsupported_routes=[target_pb2.UnsupportedRoute(route=r, reason=why) for r, why in self.unsupported],
            **{"engine": "fake", **self.abilities},
        )


def _prefix(request):
    return request.cache_salt, tuple(request.token_ids)


def check_plan(request, routes, page_tokens):
    """What target.proto says of a kv_plan, and what every target checks."""
    plan, policy = request.kv_plan, request.kv_plan.policy
    if plan_pb2.ROUTE_SPEC_KV not in routes:
        raise RouteUnsupported("kv_plan", "spec_kv", "none")
    covered = plan.prompt_tokens or len(request.token_ids)
    spans = [i for span in plan.protected_spans for i in range(span.start, span.end)]
    window = range(covered - 1 - policy.window, covered - 1)
    checks = {
        "prompt_tokens": 0 < covered <= len(request.token_ids),
        "window": policy.window < policy.capacity,
        "protected_spans": all(i < covered for i in spans),
        "capacity": covered - 1 <= policy.capacity or len({*spans, *window} - {covered - 1}) <= policy.capacity,
        "lookahead_token_ids": all(token_id < VOCABULARY for token_id in plan.lookahead_token_ids),
        "kv_mask": plan.HasField("kv_mask") == (policy.selection == plan_pb2.KV_SELECTION_DRAFT_MASK),
    }
    if plan.HasField("kv_mask"):
        kept = np.unpackbits(np.frombuffer(plan.kv_mask.kept, np.uint8), bitorder="little")[:covered]
        checks["kv_mask.prompt_tokens"] = plan.kv_mask.prompt_tokens == covered
        checks["kv_mask.kept"] = kept.sum() == policy.capacity + 1 and all(kept[i] for i in {*spans, *window})
    for name, holds in checks.items():
        if not holds:
            raise InvalidRequest(f"kv_plan.{name}", "as sent", "what target.proto says")
    try:
        kv_plan.check_plan(kv_plan_from_wire(plan), covered, layers=4, kv_heads=2, page_tokens=page_tokens)
    except PresiftError as error:
        raise InvalidRequest("kv_plan", "refused", "what core.kv_plan says", error.message) from error


def raises(error):
    """A fault: the service raises `error`."""

    async def fault(context):
        raise error

    return fault


def aborts(code):
    """A fault: a bare gRPC status, as a proxy sends it."""

    async def fault(context):
        await context.abort(code, "by the fake")

    return fault


def takes(seconds):
    """A fault: the answer comes that much later."""

    async def fault(context):
        await asyncio.sleep(seconds)

    return fault


async def hangs(context):
    """A fault: no answer until the caller gives up."""
    await asyncio.Event().wait()
