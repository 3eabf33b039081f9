"""The composition root: builds an orchestrator from its settings.

`build_app` turns settings into edges (connections, stores, the tokenizer) and tuning; `wire` connects the parts. Tests
call `wire` with other edges.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from presift.cache.build_lock import BuildLock
from presift.cache.factory import open_build_lock, open_store
from presift.cache.store import CacheLimits, Operation, Outcome, Store
from presift.core.errors import PresiftError
from presift.orchestrator.admission.admission import Admission, QueueLimits
from presift.orchestrator.admission.answer_bytes import AnswerBytes
from presift.orchestrator.admission.factory import open_usage_limits
from presift.orchestrator.admission.quotas import Quotas
from presift.orchestrator.backends.cross_vocabulary import CrossVocabularyDraft
from presift.orchestrator.backends.draft_client import DraftClient
from presift.orchestrator.backends.model_registry import ModelRegistry
from presift.orchestrator.backends.target_client import TargetClient
from presift.orchestrator.config.backend_settings import QualitySettings
from presift.orchestrator.config.policy_settings import policy_defaults
from presift.orchestrator.config.reload import PolicySource
from presift.orchestrator.config.settings import OrchestratorSettings
from presift.orchestrator.estimation.calibration import Calibration
from presift.orchestrator.estimation.estimator import CostEstimator
from presift.orchestrator.estimation.prefix_index import PrefixIndex
from presift.orchestrator.pipeline.gauges import gauges_of
from presift.orchestrator.pipeline.parts import Parts
from presift.orchestrator.pipeline.pipeline import Pipeline
from presift.orchestrator.planning.compressor import Compressor
from presift.orchestrator.planning.conversations import SelectionStore
from presift.orchestrator.planning.draft_stage import DraftStage
from presift.orchestrator.planning.planner import Planner
from presift.orchestrator.planning.prefill import Prefiller
from presift.orchestrator.planning.request_context import PromptReader
from presift.orchestrator.prompt.loader import load_bridge, load_tokenizer
from presift.orchestrator.prompt.tokenizer import PromptTokenizer
from presift.orchestrator.prompt.vocabulary_bridge import VocabularyBridge
from presift.orchestrator.quality.guard import QualityGuard
from presift.orchestrator.quality.sampler import Sampler
from presift.orchestrator.quality.shadow_answers import ShadowAnswers
from presift.orchestrator.routing.choice import Defaults
from presift.orchestrator.routing.quality_gate import QualityGate, Thresholds
from presift.rpc.security.certificates import TlsFiles
from presift.rpc.security.peer import Peer
from presift.telemetry.gauges import Gauge
from presift.telemetry.metrics import count

# For calls that only tokenize: they leave processor time to others, and do not wait for the targets.
TOKENIZING = QueueLimits(max_running=2, max_waiting=256, max_bytes=128 * 2**20)
# One at a time: the largest takes 832 MiB, for a request of 256 KiB (tests/ops/test_memory.py).
EXPLAINING = QueueLimits(max_running=1, max_waiting=256, max_bytes=128 * 2**20)
# KV masks of the target that explanations hold. Apart from EXPLAINING, because the target may be slow.
READING_MASKS = QueueLimits(max_running=1, max_waiting=256, max_bytes=64 * 2**20)


class Closable(Protocol):
    """Holds resources that must be released."""

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Edges:
    """Everything through which an orchestrator reaches the outside.

    `bridge` is set if the draft has another vocabulary. `closables` are further resources to close at the end.
    """

    draft: DraftClient
    target: TargetClient
    store: Store
    lock: BuildLock
    tokenizer: PromptTokenizer
    quotas: Quotas
    bridge: VocabularyBridge | None = None
    closables: tuple[Closable, ...] = ()


@dataclass(frozen=True, slots=True)
class Tuning:
    """The values that the parts are made with."""

    policies: PolicySource
    defaults: Defaults
    estimator: CostEstimator
    queue: QueueLimits = field(default_factory=QueueLimits)
    sampler: Sampler = field(default_factory=Sampler)
    thresholds: Thresholds = field(default_factory=Thresholds)
    draft_timeout_s: float = 60.0
    max_request_s: float | None = None
    prefills: bool = True
    selection_memory_bytes: int = 64 * 2**20
    max_answer_bytes: int = 256 * 2**20
    calibration_limit_s: float = 20.0
    calibrates: bool = True
    checks_tokenizer: bool = True
    retry_s: float = 1.0


@dataclass(frozen=True, slots=True)
class App:
    """An orchestrator. `closables` are in the order in which they close."""

    pipeline: Pipeline
    models: ModelRegistry
    calibration: Calibration
    closables: tuple[Closable, ...]
    gauges: tuple[Gauge, ...]

    async def aclose(self) -> None:
        for each in self.closables:
            await each.aclose()


def wire(edges: Edges, tuning: Tuning) -> App:
    """Connect the parts. Opens no connection."""
    draft, target, bridge, estimator = edges.draft, edges.target, edges.bridge, tuning.estimator
    fingerprint = edges.tokenizer.fingerprint() if tuning.checks_tokenizer else ""
    draft_fingerprint = "" if bridge is None else bridge.draft_fingerprint
    models = ModelRegistry(draft, target, fingerprint, draft_fingerprint, retry_s=tuning.retry_s)
    target.on_switch(models.replace_target)
    scorer = draft if bridge is None else CrossVocabularyDraft(draft, bridge, edges.tokenizer.limit)
    compressor = Compressor(scorer, edges.store, edges.lock, draft_timeout_s=tuning.draft_timeout_s)
    gate = QualityGate(tuning.thresholds)
    reader = PromptReader(edges.tokenizer, models, tuning.policies, estimator, gate=gate, target=target)
    prefiller = Prefiller(target) if tuning.prefills else None
    draft_stage, selections = DraftStage(models, compressor, prefiller), SelectionStore(tuning.selection_memory_bytes)
    planner = Planner(
        reader, draft_stage=draft_stage, estimator=estimator, policies=tuning.policies, selections=selections
    )
    shadows = ShadowAnswers(edges.tokenizer, target, draft_stage, compressor, estimator)
    guard = QualityGuard(shadows.compare, tuning.sampler, gate)
    limit_s = tuning.calibration_limit_s
    calibration = Calibration(draft, target, models, tuning.defaults, estimator, limit_s=limit_s)
    if not tuning.calibrates:
        calibration.stop()
    parts = Parts(
        quotas=edges.quotas,
        admission=Admission(tuning.queue),
        tokenizing=Admission(TOKENIZING),
        explaining=Admission(EXPLAINING),
        reading_masks=Admission(READING_MASKS),
        reader=reader,
        planner=planner,
        tokenizer=edges.tokenizer,
        target=target,
        models=models,
        estimator=estimator,
        guard=guard,
        calibration=calibration,
        store=edges.store,
        answer_bytes=AnswerBytes(tuning.max_answer_bytes, lambda: count("presift.answers.ended")),
    )
    closables: tuple[Closable, ...] = (calibration, guard, models, draft, target, *edges.closables, edges.store)
    gauges = gauges_of(parts, edges.lock)
    return App(Pipeline(parts, tuning.max_request_s), models, calibration, closables, gauges)


def build_app(settings: OrchestratorSettings, policies: PolicySource) -> App:
    """Connects to nothing yet. Raises PresiftError for invalid settings or a missing tokenizer."""
    message_bytes, peer = settings.max_message_mib * 2**20, model_service_peer(settings)
    limits = CacheLimits(ttl_s=settings.cache_ttl_s, timeout_s=settings.cache_timeout_s)
    cache_url = settings.resolved_cache_url()
    store = open_store(cache_url, limits, _count_cache, settings.secret("tenant_salt"))
    usage = open_usage_limits(cache_url, settings.limits_timeout_s, settings.limits_on_trouble)
    prefixes = PrefixIndex(settings.prefix_memory_mib * 2**20)
    draft = DraftClient(
        settings.draft_address, message_bytes, prefixes, peer, hedge_after_s=settings.draft_hedge_after_s
    )
    tokenizer = load_tokenizer(settings.tokenizer, settings.token_memory_mib * 2**20)
    edges = Edges(
        draft=draft,
        target=TargetClient(
            settings.target_address, message_bytes, peer, idle_s=settings.target_idle_s, model=settings.target_model
        ),
        store=store,
        lock=open_build_lock(store, _count_cache, wait_s=settings.draft_timeout_s),
        tokenizer=tokenizer,
        quotas=usage.quotas,
        bridge=load_bridge(settings.draft_tokenizer, tokenizer) if settings.cross_vocabulary else None,
        closables=(usage,),
    )
    estimator = CostEstimator(
        prefixes,
        learns=settings.learn_speeds,
        prefills=settings.prefill_while_drafting,
        draft_width=lambda: draft.width,
    )
    tuning = Tuning(
        policies,
        policy_defaults(settings),
        estimator,
        queue=QueueLimits(settings.max_running, settings.max_waiting, settings.max_requests_mib * 2**20),
        sampler=Sampler(settings.guard_share, settings.guard_max_new_tokens),
        thresholds=quality_thresholds(settings),
        draft_timeout_s=settings.draft_timeout_s,
        max_request_s=settings.max_request_s,
        prefills=settings.prefill_while_drafting,
        selection_memory_bytes=settings.turn_memory_mib * 2**20,
        max_answer_bytes=settings.max_answers_mib * 2**20,
        calibration_limit_s=settings.calibration_limit_s,
        calibrates=settings.calibrate and settings.learn_speeds,
    )
    return wire(edges, tuning)


def model_service_peer(settings: OrchestratorSettings) -> Peer:
    """How to reach draft and target. Raises PresiftError for inconsistent settings."""
    files = TlsFiles(settings.peer_cert, settings.peer_key, settings.peer_ca, ("peer_cert", "peer_key", "peer_ca"))
    if files.ca is None and (files.cert is not None or settings.peer_name_override):
        raise PresiftError("peer_cert and peer_name_override need peer_ca")
    return Peer(None if files.ca is None else files, settings.peer_name_override, settings.tokens())


def quality_thresholds(settings: QualitySettings) -> Thresholds:
    """When the quality guard switches a route off and on. Raises InvalidRequest for inconsistent settings."""
    return Thresholds(
        settings.guard_off_below,
        settings.guard_on_above,
        settings.guard_least_samples,
        settings.guard_window,
        settings.guard_switches,
    )


def _count_cache(operation: Operation, outcome: Outcome) -> None:
    count("presift.cache.operations", operation=operation.value, outcome=outcome.value)
