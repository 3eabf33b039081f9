"""Valid requests to every method of every service: what the fuzz begins with. Token ids are below 256, sizes small."""

from __future__ import annotations

from google.protobuf.message import Message

from presift.v1 import draft_pb2, orchestrator_pb2, plan_pb2, target_pb2

LONG = [i * 7 % 250 + 1 for i in range(180)]
SPANS = [plan_pb2.Span(start=0, end=4), plan_pb2.Span(start=90, end=95)]
SPEC_PC = plan_pb2.SpecPc(
    capacity=48,
    window=8,
    pool=plan_pb2.POOL_MEAN,
    kernel=5,
    neighbors=4,
    reduction=plan_pb2.REDUCTION_SUM,
    start_layer=1,
    weighted_query=True,
    lookahead_tokens=3,
)
ADAPTIVE = plan_pb2.Adaptive(coverage=0.6, min_capacity=24)
SPEC_KV = plan_pb2.SpecKv(capacity=40, window=8, kernel=7, lookahead_tokens=4, pool=plan_pb2.POOL_MAX)
BY_MASK = plan_pb2.SpecKv(
    capacity=40, window=8, selection=plan_pb2.KV_SELECTION_DRAFT_MASK, mask=SPEC_PC, lookahead_tokens=0
)


def adaptive(policy: Message) -> Message:
    copy = type(policy)()
    copy.CopyFrom(policy)
    copy.adaptive.CopyFrom(ADAPTIVE)  # type: ignore[attr-defined]
    return copy


def score(policy: plan_pb2.Policy, **values: object) -> tuple[str, Message]:
    request = draft_pb2.ScoreRequest(token_ids=LONG, policy=policy, protected_spans=SPANS, **values)  # type: ignore[arg-type]
    return "DraftService/Score", request


POLICIES = [
    plan_pb2.Policy(spec_pc=SPEC_PC),
    plan_pb2.Policy(spec_pc=adaptive(SPEC_PC)),
    plan_pb2.Policy(spec_kv=SPEC_KV),
    plan_pb2.Policy(spec_kv=adaptive(SPEC_KV)),
    plan_pb2.Policy(spec_kv=BY_MASK),
    plan_pb2.Policy(spec_kv_pc=plan_pb2.SpecKvPc(prompt=SPEC_PC, kv=plan_pb2.SpecKv(capacity=20, window=4))),
    plan_pb2.Policy(spec_kv_pc=plan_pb2.SpecKvPc(prompt=adaptive(SPEC_PC), kv=adaptive(SPEC_KV))),
]
DRAFT: list[tuple[str, Message]] = [
    *(score(policy) for policy in POLICIES),
    score(POLICIES[0], lookahead_tokens=4, include_importance=True),
    score(POLICIES[2], include_importance=True),
    ("DraftService/GetInfo", draft_pb2.DraftServiceGetInfoRequest()),
]

SAMPLING = target_pb2.Sampling(
    max_new_tokens=6, temperature=0.7, top_p=0.9, top_k=40, seed=11, stop=["zz"], stop_token_ids=[7], ignore_eos=True
)
KV_PLAN = target_pb2.KvPlan(
    policy=SPEC_KV, protected_spans=SPANS, lookahead_token_ids=[1, 2], keep_full_prefix=True, report_kept=True
)
# Of 180 tokens: the first 32, and a window of 8.
KEPT = bytes([255] * 4 + [0] * 17 + [240, 15])
MASK_PLAN = target_pb2.KvPlan(
    policy=BY_MASK, kv_mask=plan_pb2.KvMask(layers=1, kv_heads=1, prompt_tokens=180, kept=KEPT)
)
LATER = target_pb2.KvPlan(policy=SPEC_KV, prompt_tokens=150)


def generate(**values: object) -> tuple[str, Message]:
    request = target_pb2.TargetServiceGenerateRequest(token_ids=LONG, **values)  # type: ignore[arg-type]
    return "TargetService/Generate", request


TARGET: list[tuple[str, Message]] = [
    generate(sampling=SAMPLING),
    generate(sampling=target_pb2.Sampling(max_new_tokens=4), cache_salt="salt"),
    *(generate(sampling=target_pb2.Sampling(max_new_tokens=3), kv_plan=plan) for plan in (KV_PLAN, MASK_PLAN, LATER)),
    ("TargetService/Prefill", target_pb2.PrefillRequest(token_ids=LONG, cache_salt="salt")),
    ("TargetService/GetInfo", target_pb2.TargetServiceGetInfoRequest()),
]

AUTO_CAPACITY = orchestrator_pb2.AutoCapacity(coverage=0.7, min_tokens=16, max_tokens=60)
BUDGET = orchestrator_pb2.Budget(max_prompt_tokens=64, max_kv_tokens=40, compress_above_tokens=30, min_coverage=0.1)
ADAPTING = orchestrator_pb2.Budget(max_prompt_tokens=64, compress_above_tokens=30, auto_capacity=AUTO_CAPACITY)
STRICT = orchestrator_pb2.Budget(max_prompt_tokens=100, max_ttft_ms=60_000, compress_above_tokens=0, strict=True)
KV = orchestrator_pb2.KvOptions(
    selection=plan_pb2.KV_SELECTION_TARGET_LOOKAHEAD, keep_full_prefix=False, lookahead_tokens=5
)
TURN = orchestrator_pb2.KvOptions(continue_prompt_tokens=150)
IDS = orchestrator_pb2.Prompt(token_ids=orchestrator_pb2.TokenIds(ids=LONG), protected_spans=SPANS)
TEXT = orchestrator_pb2.Prompt(text="A document of some length, said twice. " * 5)
CHAT = orchestrator_pb2.Prompt(
    chat=orchestrator_pb2.Chat(
        messages=[
            orchestrator_pb2.Message(role="system", parts=[orchestrator_pb2.TextPart(text="Be brief.")]),
            orchestrator_pb2.Message(
                role="user",
                parts=[
                    orchestrator_pb2.TextPart(text="Some words of a document. " * 6, document=True),
                    orchestrator_pb2.TextPart(text="What does it say?", protected=True),
                ],
            ),
        ],
        tools_json=['{"type": "function", "function": {"name": "f", "parameters": {}}}'],
    )
)
_ANSWER = target_pb2.Sampling(max_new_tokens=4)
_ROUTES = (plan_pb2.ROUTE_FULL, plan_pb2.ROUTE_SPEC_PC, plan_pb2.ROUTE_SPEC_KV, plan_pb2.ROUTE_SPEC_KV_PC)


def ask(**values: object) -> tuple[str, Message]:
    request = orchestrator_pb2.GenerateRequest(**({"sampling": _ANSWER} | values))  # type: ignore[arg-type]
    return "OrchestratorService/Generate", request


ORCHESTRATOR: list[tuple[str, Message]] = [
    *(ask(prompt=IDS, route=route, budget=BUDGET, kv=KV) for route in _ROUTES),
    *(ask(prompt=prompt, budget=budget) for prompt in (IDS, TEXT, CHAT) for budget in (BUDGET, ADAPTING, STRICT)),
    ask(prompt=IDS, sampling=SAMPLING),
    ask(prompt=IDS, migrate=True),
    ask(prompt=IDS, route=plan_pb2.ROUTE_SPEC_KV, kv=TURN, budget=BUDGET),
    *(
        (
            "OrchestratorService/Explain",
            orchestrator_pb2.ExplainRequest(
                prompt=prompt, budget=BUDGET, route=route, include_kv_mask=True, span_per_token=route == _ROUTES[1]
            ),
        )
        for prompt, route in ((IDS, _ROUTES[1]), (TEXT, _ROUTES[2]), (CHAT, _ROUTES[0]))
    ),
    ("OrchestratorService/GetInfo", orchestrator_pb2.GetInfoRequest()),
]
