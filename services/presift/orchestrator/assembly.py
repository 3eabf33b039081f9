"""Assembly: an orchestrator's parts, put together by its settings. The only place that knows them all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from presift.cache.opening import open_lease, open_store
from presift.cache.store import CacheLimits, Operation, Outcome
from presift.orchestrator.access.opening import open_counts
from presift.orchestrator.admission import Admission
from presift.orchestrator.calibration import Calibration
from presift.orchestrator.cases import Cases
from presift.orchestrator.chains import BLOCK_TOKENS
from presift.orchestrator.compression import Compressor
from presift.orchestrator.cross_vocabulary import CrossVocabularyDraft
from presift.orchestrator.drafting import Drafter
from presift.orchestrator.economy import Economy
from presift.orchestrator.gauges import gauges_of
from presift.orchestrator.guard.answers import Answers
from presift.orchestrator.guard.guard import Guard
from presift.orchestrator.guard.switches import Switches
from presift.orchestrator.loading import load_interpreter, load_tokenizer
from presift.orchestrator.models import Models
from presift.orchestrator.pipeline import Pipeline
from presift.orchestrator.planning import Planner
from presift.orchestrator.prefilling import Prefiller
from presift.orchestrator.prefixes import Prefixes
from presift.orchestrator.remote import RemoteDraft, RemoteTarget
from presift.orchestrator.seating import Usher
from presift.orchestrator.settings import OrchestratorSettings
from presift.orchestrator.terms_in_force import TermsInForce
from presift.orchestrator.turns import Turns
from presift.rpc.gauges import Gauge
from presift.rpc.metrics import count


class Part(Protocol):
    """What holds something that must be given back."""

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Assembly:
    """`parts` in the order in which they close; `gauges` show how full all is."""

    pipeline: Pipeline
    models: Models
    calibration: Calibration
    parts: tuple[Part, ...]
    gauges: tuple[Gauge, ...]

    async def aclose(self) -> None:
        for part in self.parts:
            await part.aclose()


def assemble(settings: OrchestratorSettings, terms: TermsInForce) -> Assembly:
    """Connects to nothing yet. Raises PresiftError for settings that cannot hold or a tokenizer that is not there."""
    message_bytes = settings.max_message_mib * 2**20
    limits = CacheLimits(ttl_s=settings.cache_ttl_s, timeout_s=settings.cache_timeout_s)
    store = open_store(settings.cache_url_in_force(), limits, _count_cache)
    lease = open_lease(store, limits, _count_cache, lease_s=settings.draft_timeout_s)
    peer = settings.peer()
    draft = RemoteDraft(settings.draft_address, message_bytes, peer, hedge_after_s=settings.draft_hedge_after_s)
    target = RemoteTarget(settings.target_address, message_bytes, peer)
    tokenizer = load_tokenizer(settings.tokenizer, settings.token_memory)
    interpreter = load_interpreter(settings.draft_tokenizer, tokenizer) if settings.cross_vocabulary else None
    foreign = "" if interpreter is None else interpreter.draft_fingerprint
    models = Models(draft, target, tokenizer.fingerprint(), foreign)
    scorer = draft if interpreter is None else CrossVocabularyDraft(draft, interpreter)
    compressor = Compressor(scorer, store, lease, draft_timeout_s=settings.draft_timeout_s)
    economy, switches = _economy(settings, lambda: draft.width), Switches(settings.thresholds())
    cases = Cases(tokenizer, models, terms, economy, switches=switches, usher=Usher(target, models, economy))
    prefiller = Prefiller(target) if settings.prefill_while_drafting else None
    planner = Planner(cases, models, compressor, economy, prefiller=prefiller, turns=Turns(settings.turn_memory))
    defaults = settings.defaults()
    answers = Answers(target, Drafter(models, compressor), compressor, economy, defaults=defaults)
    guard = Guard(answers.compare, settings.sampler(), switches)
    calibration = Calibration(draft, target, models, defaults, economy, limit_s=settings.calibration_limit_s)
    if not (settings.calibrate and settings.learn_speeds):
        calibration.stop()
    counts = open_counts(settings.cache_url_in_force(), settings.limits_timeout_s, settings.limits_on_trouble)
    admission = Admission(settings.admission_limits())
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
    return Assembly(pipeline, models, calibration, parts, gauges_of(pipeline, models, lease, counts.allowances))


def _economy(settings: OrchestratorSettings, drafts: Callable[[], int]) -> Economy:
    prefixes = Prefixes(settings.prefix_memory // BLOCK_TOKENS)
    return Economy(prefixes, learns=settings.learn_speeds, reads_beside=settings.prefill_while_drafting, drafts=drafts)


def _count_cache(operation: Operation, outcome: Outcome) -> None:
    count("presift.cache.operations", operation=operation.value, outcome=outcome.value)
