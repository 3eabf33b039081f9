"""App: an orchestrator's parts, put together by its settings. The only place that knows them all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from presift.cache.factory import open_build_lock, open_store
from presift.cache.store import CacheLimits, Operation, Outcome
from presift.core.errors import PresiftError
from presift.orchestrator.admission.admission import Admission, QueueLimits
from presift.orchestrator.admission.factory import open_usage_limits
from presift.orchestrator.backends.cross_vocabulary import CrossVocabularyDraft
from presift.orchestrator.backends.model_registry import ModelRegistry
from presift.orchestrator.backends.remote import DraftClient, TargetClient
from presift.orchestrator.config.backend_settings import QualitySettings
from presift.orchestrator.config.policy_settings import policy_defaults
from presift.orchestrator.config.reload import PolicySource
from presift.orchestrator.config.settings import OrchestratorSettings
from presift.orchestrator.estimation.block_hash import BLOCK_TOKENS
from presift.orchestrator.estimation.calibration import Calibration
from presift.orchestrator.estimation.estimator import CostEstimator
from presift.orchestrator.estimation.prefix_index import PrefixIndex
from presift.orchestrator.pipeline.gauges import gauges_of
from presift.orchestrator.pipeline.pipeline import Pipeline
from presift.orchestrator.planning.compressor import Compressor
from presift.orchestrator.planning.conversations import SelectionStore
from presift.orchestrator.planning.draft_stage import DraftStage
from presift.orchestrator.planning.planner import Planner
from presift.orchestrator.planning.prefill import Prefiller
from presift.orchestrator.planning.replica_picker import ReplicaPicker
from presift.orchestrator.planning.request_context import RequestReader
from presift.orchestrator.prompt.loader import load_bridge, load_tokenizer
from presift.orchestrator.quality.guard import QualityGuard
from presift.orchestrator.quality.sampler import Sampler
from presift.orchestrator.quality.shadow_answers import ShadowAnswers
from presift.orchestrator.routing.quality_gate import QualityGate, Thresholds
from presift.rpc.security.certificates import TlsFiles
from presift.rpc.security.peer import Peer
from presift.telemetry.gauges import Gauge
from presift.telemetry.metrics import count


class Part(Protocol):
    """What holds something that must be given back."""

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class App:
    """`parts` in the order in which they close; `gauges` show how full all is."""

    pipeline: Pipeline
    models: ModelRegistry
    calibration: Calibration
    parts: tuple[Part, ...]
    gauges: tuple[Gauge, ...]

    async def aclose(self) -> None:
        for part in self.parts:
            await part.aclose()


def build_app(settings: OrchestratorSettings, terms: PolicySource) -> App:
    """Connects to nothing yet. Raises PresiftError for settings that cannot hold or a tokenizer that is not there."""
    message_bytes = settings.max_message_mib * 2**20
    limits = CacheLimits(ttl_s=settings.cache_ttl_s, timeout_s=settings.cache_timeout_s)
    store = open_store(settings.resolved_cache_url(), limits, _count_cache)
    lease = open_build_lock(store, limits, _count_cache, lease_s=settings.draft_timeout_s)
    peer = model_service_peer(settings)
    draft = DraftClient(settings.draft_address, message_bytes, peer, hedge_after_s=settings.draft_hedge_after_s)
    target = TargetClient(settings.target_address, message_bytes, peer)
    tokenizer = load_tokenizer(settings.tokenizer, settings.token_memory)
    interpreter = load_bridge(settings.draft_tokenizer, tokenizer) if settings.cross_vocabulary else None
    foreign = "" if interpreter is None else interpreter.draft_fingerprint
    models = ModelRegistry(draft, target, tokenizer.fingerprint(), foreign)
    scorer = draft if interpreter is None else CrossVocabularyDraft(draft, interpreter)
    compressor = Compressor(scorer, store, lease, draft_timeout_s=settings.draft_timeout_s)
    economy, switches = _economy(settings, lambda: draft.width), QualityGate(quality_thresholds(settings))
    cases = RequestReader(
        tokenizer, models, terms, economy, switches=switches, usher=ReplicaPicker(target, models, economy)
    )
    prefiller = Prefiller(target) if settings.prefill_while_drafting else None
    planner = Planner(
        cases, models, compressor, economy, prefiller=prefiller, turns=SelectionStore(settings.turn_memory)
    )
    defaults = policy_defaults(settings)
    answers = ShadowAnswers(target, DraftStage(models, compressor), compressor, economy, defaults=defaults)
    guard = QualityGuard(answers.compare, Sampler(settings.guard_share, settings.guard_max_new_tokens), switches)
    calibration = Calibration(draft, target, models, defaults, economy, limit_s=settings.calibration_limit_s)
    if not (settings.calibrate and settings.learn_speeds):
        calibration.stop()
    counts = open_usage_limits(settings.resolved_cache_url(), settings.limits_timeout_s, settings.limits_on_trouble)
    waiting_bytes = settings.max_waiting_mib * 2**20
    admission = Admission(QueueLimits(settings.max_running, settings.max_waiting, waiting_bytes))
    pipeline = Pipeline(
        planner,
        tokenizer,
        models,
        target,
        guard=guard,
        calibration=calibration,
        allowances=counts.allowances,
        admission=admission,
    )
    parts = (calibration, guard, models, draft, target, counts, store)
    return App(pipeline, models, calibration, parts, gauges_of(pipeline, models, lease, counts.allowances))


def model_service_peer(settings: OrchestratorSettings) -> Peer:
    """How to reach draft and target. Raises PresiftError for settings that contradict each other."""
    files = TlsFiles(settings.peer_cert, settings.peer_key, settings.peer_ca, ("peer_cert", "peer_key", "peer_ca"))
    if files.ca is None and (files.cert is not None or settings.peer_name_override):
        raise PresiftError("peer_cert and peer_name_override need peer_ca")
    return Peer(None if files.ca is None else files, settings.peer_name_override, settings.tokens())


def quality_thresholds(settings: QualitySettings) -> Thresholds:
    """When the quality guard switches a route off and on. Raises InvalidRequest for thresholds that contradict."""
    return Thresholds(
        settings.guard_off_below,
        settings.guard_on_above,
        settings.guard_least_samples,
        settings.guard_window,
        settings.guard_switches,
    )


def _economy(settings: OrchestratorSettings, drafts: Callable[[], int]) -> CostEstimator:
    prefixes = PrefixIndex(settings.prefix_memory // BLOCK_TOKENS)
    return CostEstimator(
        prefixes, learns=settings.learn_speeds, reads_beside=settings.prefill_while_drafting, drafts=drafts
    )


def _count_cache(operation: Operation, outcome: Outcome) -> None:
    count("presift.cache.operations", operation=operation.value, outcome=outcome.value)
