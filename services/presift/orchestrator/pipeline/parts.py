"""What the pipeline works with: the parts of an orchestrator, which `app.py` makes."""

from __future__ import annotations

from dataclasses import dataclass

from presift.cache.store import Store
from presift.orchestrator.admission.admission import Admission
from presift.orchestrator.admission.answer_bytes import AnswerBytes
from presift.orchestrator.admission.quotas import Quotas
from presift.orchestrator.backends.model_registry import ModelRegistry
from presift.orchestrator.domain.ports import Target
from presift.orchestrator.estimation.calibration import Calibration
from presift.orchestrator.estimation.estimator import CostEstimator
from presift.orchestrator.planning.planner import Planner
from presift.orchestrator.planning.request_context import PromptReader
from presift.orchestrator.prompt.tokenizer import PromptTokenizer
from presift.orchestrator.quality.guard import QualityGuard


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of an orchestrator that its pipeline uses.

    Requests wait in `admission`; `tokenizing`, `explaining` and `reading_masks` limit one kind of work each.
    """

    quotas: Quotas
    admission: Admission
    tokenizing: Admission
    explaining: Admission
    reading_masks: Admission
    reader: PromptReader
    planner: Planner
    tokenizer: PromptTokenizer
    target: Target
    models: ModelRegistry
    estimator: CostEstimator
    guard: QualityGuard
    calibration: Calibration
    store: Store
    answer_bytes: AnswerBytes
