"""App: an orchestrator's parts, put together by its settings. The only place that knows them all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from presift.cache.factory import open_build_lock, open_store
from presift.cache.store import CacheLimits, Operation, Outcome
from presift.orchestrator.admission.admission import Admission
from presift.orchestrator.admission.factory import open_usage_limits
from presift.orchestrator.backends.cross_vocabulary import CrossVocabularyDraft
from presift.orchestrator.backends.model_registry import ModelRegistry
from presift.orchestrator.backends.remote import DraftClient, TargetClient
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
from presift.orchestrator.routing.quality_gate import QualityGate
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
    store = open_store(settings.cache_url_in_force(), limits, _count_cache)
    lease = open_build_lock(store, limits, _count_cache, lease_s=settings.draft_timeout_s)
    peer = settings.peer()
    draft = DraftClient(settings.draft_address, message_bytes, peer, hedge_after_s=settings.draft_hedge_after_s)
    target = TargetClient(settings.target_address, message_bytes, peer)
    tokenizer = load_tokenizer(settings.tokenizer, settings.token_memory)
    interpreter = load_bridge(settings.draft_tokenizer, tokenizer) if settings.cross_vocabulary else None
    foreign = "" if interpreter is None else interpreter.draft_fingerprint
    models = ModelRegistry(draft, target, tokenizer.fingerprint(), foreign)
    scorer = draft if interpreter is None else CrossVocabularyDraft(draft, interpreter)
    compressor = Compressor(scorer, store, lease, draft_timeout_s=settings.draft_timeout_s)
    economy, switches = _economy(settings, lambda: draft.width), QualityGate(settings.thresholds())
    cases = RequestReader(
        tokenizer, models, terms, economy, switches=switches, usher=ReplicaPicker(target, models, economy)
    )
    prefiller = Prefiller(target) if settings.prefill_while_drafting else None
    planner = Planner(
        cases, models, compressor, economy, prefiller=prefiller, turns=SelectionStore(settings.turn_memory)
    )
    defaults = settings.defaults()
    answers = ShadowAnswers(target, DraftStage(models, compressor), compressor, economy, defaults=defaults)
    guard = QualityGuard(answers.compare, Sampler(settings.guard_share, settings.guard_max_new_tokens), switches)
    calibration = Calibration(draft, target, models, defaults, economy, limit_s=settings.calibration_limit_s)
    if not (settings.calibrate and settings.learn_speeds):
        calibration.stop()
    counts = open_usage_limits(settings.cache_url_in_force(), settings.limits_timeout_s, settings.limits_on_trouble)
    admission = Admission(settings.admission_limits())
    pipeline = Pipeline(
        planner,
        tokenizer,
        models,
        target,
        guard=guard,
        calibration=calibration,
        allowances=counts.quotas,
        admission=admission,
    )
    parts = (calibration, guard, models, draft, target, counts, store)
    return App(pipeline, models, calibration, parts, gauges_of(pipeline, models, lease, counts.quotas))


def _economy(settings: OrchestratorSettings, drafts: Callable[[], int]) -> CostEstimator:
    prefixes = PrefixIndex(settings.prefix_memory // BLOCK_TOKENS)
    return CostEstimator(
        prefixes, learns=settings.learn_speeds, reads_beside=settings.prefill_while_drafting, drafts=drafts
    )


def _count_cache(operation: Operation, outcome: Outcome) -> None:
    count("presift.cache.operations", operation=operation.value, outcome=outcome.value)
