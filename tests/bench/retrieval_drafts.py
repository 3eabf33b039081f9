"""What the real draft says about each retrieval task: its own answer, the lookahead and the masks, kept in a file.

One pass over each prompt gives all of it. The draft's answer to the full prompt is its lookahead, which is greedy.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from retrieval_tasks import Task, is_right

from presift.core.importance import coverage
from presift.core.masks import TokenMask
from presift.core.policies import KvSelection, SpecKv, SpecPc
from presift.core.remapping import remapped
from presift.core.selection import select
from presift.core.spans import must_keep
from presift.draft.attention import Observer, RowCapture, scored_heads
from presift.draft.scorer import Cancel, ScoreResult, ScoreTask
from presift.draft.transformers_scorer import TransformersScorer
from presift.orchestrator.config.policy_settings import policy_defaults
from presift.orchestrator.config.settings import OrchestratorSettings
from presift.orchestrator.domain.request import TokenizedPrompt
from presift.orchestrator.prompt.loader import load_bridge
from presift.orchestrator.prompt.tokenizer import PromptTokenizer
from presift.orchestrator.prompt.vocabulary_bridge import VocabularyBridge

CAPACITIES = (256, 512)
LOOKAHEAD_TOKENS = 24
DEFAULTS = policy_defaults(OrchestratorSettings.model_construct())


def first_capacity(prompt_tokens: int) -> int:
    """What SpecKV-PC keeps of the prompt first: the paper's 2,048 would drop nothing of a short one."""
    return 1024 if prompt_tokens < 2300 else 2048


@dataclass(frozen=True, slots=True)
class Reader:
    """The draft and its tokenizer."""

    scorer: _TwoWindows | _Foreign
    tokenizer: PromptTokenizer
    capacities: tuple[int, ...] = CAPACITIES

    def read(self, task: Task, tokens: TokenizedPrompt) -> dict[str, Any]:
        """Everything that the methods take from the draft, ready for JSON."""
        defaults = DEFAULTS.for_draft(self.scorer.info)
        prompt, kv = defaults.spec_pc, _mask_policy(256, defaults.spec_pc)
        self.scorer.second_policy = kv
        scored = self.scorer.score(ScoreTask(tokens.ids, prompt, LOOKAHEAD_TOKENS), Cancel())
        assert scored.importance is not None and scored.coverage_importance is not None
        first, second = (scored.importance, scored.coverage_importance), self.scorer.second_importance()
        sizes = possible((*self.capacities, first_capacity(tokens.ids.size)), tokens)
        masks = {f"spec_pc {size}": mask_record(first, replace(prompt, capacity=size), tokens) for size in sizes}
        masks |= {f"draft_mask {size}": mask_record(second, replace(kv, capacity=size + 1), tokens) for size in sizes}
        text = self.tokenizer.backend.decode(list(scored.lookahead_token_ids)) if self.tokenizer.backend else ""
        return {
            "digest": digest(tokens),
            "prompt_tokens": int(tokens.ids.size),
            "answer": text,
            "right": is_right(task, text),
            "lookahead": list(scored.lookahead_token_ids),
            "prefill_ms": round(scored.timings.prefill_ms),
            "lookahead_ms": round(scored.timings.lookahead_ms),
            "masks": masks,
        }


def digest(tokens: TokenizedPrompt) -> str:
    """Names the prompt that a record belongs to."""
    return hashlib.sha256(tokens.ids.tobytes()).hexdigest()[:16]


def mask_of(record: dict[str, Any], name: str) -> NDArray[np.bool_]:
    """bool[prompt tokens] of one of the masks of `Reader.read`."""
    return TokenMask.from_bits(base64.b64decode(record["masks"][name]["kept"]), record["prompt_tokens"]).kept


def possible(capacities: tuple[int, ...], tokens: TokenizedPrompt) -> list[int]:
    """Those that hold what must be kept."""
    needed = np.count_nonzero(must_keep(tokens.protected, tokens.ids.size, DEFAULTS.spec_pc.window))
    return [capacity for capacity in capacities if capacity >= needed]


def _mask_policy(capacity: int, scoring: SpecPc) -> SpecPc:
    kv = SpecKv(capacity=capacity, selection=KvSelection.DRAFT_MASK, mask=scoring)
    return kv.draft_policy


def mask_record(importance: tuple[Any, Any], policy: SpecPc, tokens: TokenizedPrompt) -> dict[str, Any]:
    scores, mass = importance
    mask = select(scores, policy, tokens.protected)
    kept = base64.b64encode(mask.to_bits()).decode()
    return {"coverage": round(coverage(mass, mask.kept), 4), "kept": kept}


class _TwoWindows(TransformersScorer):
    """Scores by two policies in one pass: DRAFT_MASK's window is one row longer, and a second pass costs minutes."""

    second_policy: SpecPc

    def score(self, task: ScoreTask, cancel: Cancel, observer: Observer | None = None) -> ScoreResult:
        heads = scored_heads(self.second_policy, self.info.layers, self._heads)
        self._second = RowCapture(task.prompt_tokens, self.second_policy, heads, self._device)
        return super().score(task, cancel, self._second)

    def second_importance(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return self._second.importance()


class _Foreign:
    """`scorer` as if it read the ids of `bridge`'s target: what `cross_vocabulary` does, and the mass besides."""

    def __init__(self, scorer: _TwoWindows, bridge: VocabularyBridge) -> None:
        self._scorer = scorer
        self._bridge = bridge
        self.info = scorer.info
        self.second_policy: SpecPc

    def score(self, task: ScoreTask, cancel: Cancel) -> ScoreResult:
        assert task.policy is not None
        self._reading = self._bridge.translate(task.token_ids)
        self._scorer.second_policy = self._scaled(self.second_policy)
        asked = ScoreTask(self._reading.ids, self._scaled(task.policy), task.lookahead_tokens)
        scored = self._scorer.score(asked, cancel)
        assert scored.importance is not None and scored.coverage_importance is not None
        scores, mass = self._carried((scored.importance, scored.coverage_importance))
        told = self._bridge.translate_lookahead(self._reading, scored.lookahead_token_ids, task.lookahead_tokens)
        return replace(scored, importance=scores, coverage_importance=mass, lookahead_token_ids=told)

    def second_importance(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return self._carried(self._scorer.second_importance())

    def _scaled(self, policy: SpecPc) -> SpecPc:
        window = self._reading.draft_window(policy.window)
        return replace(policy, capacity=window, window=window)

    def _carried(
        self, both: tuple[NDArray[np.float32], NDArray[np.float32]]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        reading = self._reading
        first, second = (remapped(each, reading.draft_offsets, reading.target_offsets) for each in both)
        return first, second


def load_draft(folder: Any, tokenizer: PromptTokenizer, capacities: tuple[int, ...] = CAPACITIES) -> Reader:
    """A draft, bf16; of another vocabulary than `tokenizer`'s it is read through the text."""
    scorer = _TwoWindows(folder, "bfloat16")
    bridge = load_bridge(str(folder.path), tokenizer)
    return Reader(scorer if bridge is None else _Foreign(scorer, bridge), tokenizer, capacities)
