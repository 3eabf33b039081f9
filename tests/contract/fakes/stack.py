"""A whole presift in one process: the real orchestrator over real gRPC to a fake draft and a fake target."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import grpc
from google.rpc import error_details_pb2, status_pb2
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from presift.cache.build_lock import NoBuildLock
from presift.cache.memory_store import MemoryStore
from presift.cache.store import CacheLimits
from presift.core.policies import SpecKv, SpecPc
from presift.orchestrator.admission.admission import QueueLimits
from presift.orchestrator.admission.quotas import Quotas
from presift.orchestrator.api.grpc.servicer import OrchestratorServicer
from presift.orchestrator.app import Edges, Tuning, wire
from presift.orchestrator.backends.draft_client import DraftClient
from presift.orchestrator.backends.target_client import TargetClient
from presift.orchestrator.config.reload import fixed_policy
from presift.orchestrator.domain.caller import proven_tenant
from presift.orchestrator.estimation.estimator import CostEstimator
from presift.orchestrator.estimation.prefix_index import PrefixIndex
from presift.orchestrator.prompt.tokenizer import PromptTokenizer
from presift.orchestrator.prompt.vocabulary_bridge import VocabularyBridge
from presift.orchestrator.quality.sampler import Sampler
from presift.orchestrator.routing.choice import Defaults
from presift.orchestrator.routing.quality_gate import Thresholds
from presift.rpc.server.server import GrpcServer, ServerOptions
from presift.v1 import draft_pb2_grpc, orchestrator_pb2, orchestrator_pb2_grpc, plan_pb2, target_pb2, target_pb2_grpc

from .services import DRAFT_CONTEXT, FakeDraft, FakeTarget, model

CAPACITY, WINDOW, THRESHOLD = 16, 4, 32
KV_CAPACITY, KV_WINDOW, LOOKAHEAD, CASCADE = 10, 3, 4, 24
DEFAULTS = Defaults(
    SpecPc(CAPACITY, window=WINDOW, kernel=1, neighbors=0, start_layer=0),
    THRESHOLD,
    spec_kv=SpecKv(KV_CAPACITY, window=KV_WINDOW, lookahead_tokens=LOOKAHEAD),
    cascade_capacity=CASCADE,
)
ALL_ROUTES = (plan_pb2.ROUTE_FULL, plan_pb2.ROUTE_SPEC_PC, plan_pb2.ROUTE_SPEC_KV, plan_pb2.ROUTE_SPEC_KV_PC)
NO_SAMPLES, THRESHOLDS, LIMITS = Sampler(0.0), Thresholds(), QueueLimits()
LOCAL = "127.0.0.1:0"


def byte_tokenizer():
    """One token per byte of UTF-8."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def quad_tokenizer():
    """Four characters a token, all of them id 0, and three that it can say."""
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, " yes": 1, "!": 2, "naïve": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]{1,4}"), "isolated")
    backend.decoder = decoders.Fuse()
    return backend


def template(messages, tools, **_):
    for message in messages:
        if "BREAK" in message["content"]:
            raise RuntimeError(f"broken by {message['content']}")
    head = f"<tools>{tools}</tools>" if tools else ""
    return head + "".join(f"<{m['role']}>{m['content']}</{m['role']}>" for m in messages) + "<assistant>"


@dataclass(frozen=True)
class Options:
    """What differs between stacks. `draft` None: no service listens at the draft's address."""

    draft: plan_pb2.ModelInfo | None = None
    target: plan_pb2.ModelInfo | None = None
    draft_up: bool = True
    routes: tuple = (plan_pb2.ROUTE_FULL, plan_pb2.ROUTE_SPEC_PC)
    draft_timeout_s: float = 20.0
    target_idle_s: float | None = None
    target_model: str = ""
    max_request_s: float | None = None
    salt: str = ""
    store: object = None
    message_bytes: int = 2**20
    received_bytes: int = 512 * 2**20
    answer_bytes: int = 256 * 2**20
    unsupported: tuple = ()
    kv_page_tokens: int = 0
    kv_pool_tokens: int = 0
    prefills: bool = True
    turn_memory_bytes: int = 8 * 2**20
    defaults: Defaults = DEFAULTS
    terms: object = None
    estimator: object = None
    draft_tokenizer: Tokenizer | None = None  # the draft's, where it has another vocabulary
    sampler: Sampler = NO_SAMPLES
    thresholds: Thresholds = THRESHOLDS
    calibration_limit_s: float = 20.0
    auth_interceptors: tuple = ()
    quotas: object = None
    limits: QueueLimits = LIMITS
    lease: object = None
    drain_s: float = 5.0
    lame_duck_s: float = 0.0
    drafts: int = 1
    targets: int = 1
    target_at: str = ""  # the address of another stack's target, which is then asked instead
    draft_hedge_after_s: float | None = None
    abilities: dict | None = None  # the target's: parsers and grammars


class Stack:
    def __init__(self, options):
        self.options = options
        self._exit = AsyncExitStack()
        self.drafts = [
            FakeDraft(options.draft or model("draft", context_tokens=DRAFT_CONTEXT)) for _ in range(options.drafts)
        ]
        self.targets = [
            FakeTarget(
                options.target or model("target"),
                options.routes,
                options.kv_page_tokens,
                options.unsupported,
                options.kv_pool_tokens,
                abilities=options.abilities,
            )
            for _ in range(options.targets)
        ]
        self.draft, self.target = self.drafts[0], self.targets[0]
        self.store = options.store or MemoryStore(CacheLimits())
        self.draft_servers = [GrpcServer(ServerOptions(LOCAL), ["presift.v1.DraftService"]) for _ in self.drafts]
        self.target_servers = [GrpcServer(ServerOptions(LOCAL), ["presift.v1.TargetService"]) for _ in self.targets]
        self.draft_server, self.target_server = self.draft_servers[0], self.target_servers[0]
        for draft, server in zip(self.drafts, self.draft_servers, strict=True):
            draft_pb2_grpc.add_DraftServiceServicer_to_server(draft, server.grpc)
        for target, server in zip(self.targets, self.target_servers, strict=True):
            target_pb2_grpc.add_TargetServiceServicer_to_server(target, server.grpc)
        self.server = GrpcServer(
            ServerOptions(
                LOCAL,
                options.message_bytes,
                options.drain_s,
                lame_duck_s=options.lame_duck_s,
                max_received_bytes=options.received_bytes,
            ),
            ["presift.v1.OrchestratorService"],
            auth_interceptors=options.auth_interceptors,
            tenant_of_call=proven_tenant,
        )

    async def start(self):
        draft_ports = [await self._serve(server) for server in self.draft_servers]
        target_ports = [await self._serve(server) for server in self.target_servers]
        if not self.options.draft_up:
            await self.draft_server.grpc.stop(0)
        self.ports = {"draft": draft_ports[0], "target": target_ports[0]}
        self.draft_ports, self.target_ports = draft_ports, target_ports
        drafts, targets = (",".join(f"127.0.0.1:{port}" for port in ports) for ports in (draft_ports, target_ports))
        self.remote_draft = DraftClient(drafts, 2**20, PrefixIndex(), hedge_after_s=self.options.draft_hedge_after_s)
        idle_s, named = self.options.target_idle_s, self.options.target_model
        self.remote_target = TargetClient(self.options.target_at or targets, 2**20, idle_s=idle_s, model=named)
        orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server(self._servicer(), self.server.grpc)
        self.address = f"127.0.0.1:{await self._serve(self.server)}"
        self.channel = await self._exit.enter_async_context(grpc.aio.insecure_channel(self.address))
        self.stub = orchestrator_pb2_grpc.OrchestratorServiceStub(self.channel)

    def _servicer(self):
        options = self.options
        self.tokenizer = PromptTokenizer(byte_tokenizer(), template)
        self.estimator = options.estimator or CostEstimator(learns=False, prefills=options.prefills)
        bridge = None
        if options.draft_tokenizer is not None:
            bridge = VocabularyBridge(byte_tokenizer(), options.draft_tokenizer)
        edges = Edges(
            draft=self.remote_draft,
            target=self.remote_target,
            store=self.store,
            lock=options.lease or NoBuildLock(),
            tokenizer=self.tokenizer,
            quotas=options.quotas or Quotas(),
            bridge=bridge,
        )
        policies = options.terms or fixed_policy(options.defaults)
        tuning = Tuning(
            policies,
            options.defaults,
            self.estimator,
            queue=options.limits,
            sampler=options.sampler,
            thresholds=options.thresholds,
            draft_timeout_s=options.draft_timeout_s,
            max_request_s=options.max_request_s,
            prefills=options.prefills,
            selection_memory_bytes=options.turn_memory_bytes,
            max_answer_bytes=options.answer_bytes,
            calibration_limit_s=options.calibration_limit_s,
            checks_tokenizer=False,
            retry_s=0.01,
        )
        app = self.app = wire(edges, tuning)
        self._exit.push_async_callback(app.aclose)
        self.models, self.calibration, self.pipeline = app.models, app.calibration, app.pipeline
        draft_stage = app.pipeline.parts.planner._draft_stage
        self.compressor, self.prefiller = draft_stage._compressor, draft_stage._prefiller
        self.guard, self.admission = app.pipeline.parts.guard, app.pipeline.parts.admission
        return OrchestratorServicer(app.pipeline, app.models, policies, salt=options.salt)

    async def _serve(self, server):
        port = await server.start()
        await server.set_serving(True)
        self._exit.push_async_callback(server.grpc.stop, 0)
        return port

    async def connect(self):
        await self.models.connect()
        return self

    async def stop(self):
        for fake in (*self.targets, *self.drafts):
            fake.gate.set()
        await self._exit.aclose()

    async def ask(self, prompt, **options):
        """The whole answer."""
        return Answer.of([event async for event in self.stub.Generate(request(prompt, **options))])

    async def refused(self, prompt, **options):
        """The refusal of a request that must not be answered."""
        return await refusal_of(self.ask(prompt, **options))

    async def settle(self, condition):
        """Wait until `condition` holds."""
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.002)


@dataclass(frozen=True)
class Answer:
    decision: orchestrator_pb2.Decision
    text: str
    token_ids: list
    usage: orchestrator_pb2.Usage

    @classmethod
    def of(cls, events):
        """Holds the order of the stream too: one decision, deltas, one usage."""
        kinds = [event.WhichOneof("event") for event in events]
        assert kinds == ["decision", *["delta"] * (len(kinds) - 2), "usage"]
        deltas = [event.delta for event in events[1:-1]]
        token_ids = [token_id for delta in deltas for token_id in delta.token_ids]
        return cls(events[0].decision, "".join(delta.text for delta in deltas), token_ids, events[-1].usage)

    @property
    def route(self):
        return plan_pb2.Route.Name(self.decision.route).removeprefix("ROUTE_")

    @property
    def reason(self):
        return orchestrator_pb2.DecisionReason.Name(self.decision.reason).removeprefix("DECISION_REASON_")

    @property
    def cache(self):
        return orchestrator_pb2.CacheOutcome.Name(self.decision.cache).removeprefix("CACHE_OUTCOME_")


@dataclass(frozen=True)
class Refusal:
    """A failed call, its details read with google.rpc's own messages."""

    code: str
    message: str
    reason: str = ""
    field: str = ""
    value: str = ""
    limit: str = ""
    retry_after_s: float | None = None

    @classmethod
    def of(cls, error):
        refusal = cls(error.code().name, error.details())
        raw = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
        for detail in status_pb2.Status.FromString(raw or b"").details:
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(info):
                assert info.domain == "presift.dev"
                known = {name: info.metadata.get(name, "") for name in ("field", "value", "limit")}
                refusal = replace(refusal, reason=info.reason, **known)
            elif detail.Unpack(retry):
                refusal = replace(refusal, retry_after_s=retry.retry_delay.ToMilliseconds() / 1000)
        return refusal


async def refusal_of(call):
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return Refusal.of(error)
    raise AssertionError(f"answered, but must be refused: {answer}")


def request(
    prompt,
    *,
    route=plan_pb2.ROUTE_UNSPECIFIED,
    max_new_tokens=5,
    budget=None,
    sampling=None,
    spans=(),
    kv=None,
    **fields,
):
    return orchestrator_pb2.GenerateRequest(
        prompt=wire_prompt(prompt, spans),
        route=route,
        budget=orchestrator_pb2.Budget(**budget or {}),
        sampling=target_pb2.Sampling(max_new_tokens=max_new_tokens, **sampling or {}),
        kv=orchestrator_pb2.KvOptions(**kv or {}),
        **fields,
    )


def wire_prompt(prompt, spans=()):
    """Text, token ids, or a chat as (role, text) pairs."""
    protected = [plan_pb2.Span(start=start, end=end) for start, end in spans]
    if isinstance(prompt, orchestrator_pb2.Prompt):
        return prompt
    if isinstance(prompt, str):
        return orchestrator_pb2.Prompt(text=prompt, protected_spans=protected)
    prompt = list(prompt)
    if prompt and isinstance(prompt[0], tuple):
        messages = [
            orchestrator_pb2.Message(role=role, parts=[orchestrator_pb2.TextPart(text=text)]) for role, text in prompt
        ]
        return orchestrator_pb2.Prompt(chat=orchestrator_pb2.Chat(messages=messages))
    return orchestrator_pb2.Prompt(token_ids=orchestrator_pb2.TokenIds(ids=prompt), protected_spans=protected)
