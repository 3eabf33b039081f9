"""As `retrieval_drafts`, for a draft of another vocabulary: what SmolLM2-135M says about each retrieval task."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from presift.core.remapping import remapped
from presift.orchestrator.interpreting import Interpreter
from retrieval_drafts import (
    DEFAULTS,
    LOOKAHEAD_TOKENS,
    digest,
    mask_record,
    policy_of,
    possible,
)
from retrieval_tasks import Task, is_right

from presift.draft.scorer import Cancel, ScoreTask
from presift.draft.transformers_scorer import TransformersScorer
from presift.orchestrator.loading import load_tokenizer
from presift.orchestrator.tokenizer import PromptTokenizer, Tokenized


@dataclass(frozen=True, slots=True)
class CrossReader:
    """The draft, and what stands between its tokens and the target's."""

    scorer: TransformersScorer
    interpreter: Interpreter
    tokenizer: PromptTokenizer
    capacities: tuple[int, ...]

    def read(self, task: Task, tokens: Tokenized) -> dict[str, Any]:
        """The record of one task: lookahead and masks in the target's tokens."""
        reading = self.interpreter.read(tokens.ids)
        prompt = policy_of(DEFAULTS.spec_pc, self.scorer.info.layers)
        theirs = replace(prompt, window=reading.draft_window(prompt.window), capacity=2**31)
        scored = self.scorer.score(ScoreTask(reading.ids, theirs, LOOKAHEAD_TOKENS), Cancel())
        assert scored.importance is not None and scored.coverage_importance is not None
        importance, mass = (
            remapped(each, reading.draft_offsets, reading.target_offsets)
            for each in (scored.importance, scored.coverage_importance)
        )
        masks = {
            f"spec_pc {size}": mask_record((importance, mass), replace(prompt, capacity=size), tokens)
            for size in possible(self.capacities, tokens)
        }
        lookahead = self.interpreter.lookahead(reading, scored.lookahead_token_ids, LOOKAHEAD_TOKENS)
        text = "" if self.tokenizer.backend is None else self.tokenizer.backend.decode(list(lookahead))
        return {
            "digest": digest(tokens),
            "prompt_tokens": int(tokens.ids.size),
            "draft_tokens": int(reading.ids.size),
            "answer": text,
            "right": is_right(task, text),
            "lookahead": list(lookahead),
            "prefill_ms": round(scored.timings.prefill_ms),
            "masks": masks,
        }


def load_cross_draft(folder: Any, tokenizer: PromptTokenizer, capacities: tuple[int, ...]) -> CrossReader:
    """The draft in `folder`, bf16, for a target with this tokenizer."""
    theirs = load_tokenizer(str(folder.path), 0)
    assert tokenizer.backend is not None and theirs.backend is not None
    interpreter = Interpreter(tokenizer.backend, theirs.backend)
    return CrossReader(TransformersScorer(folder, "bfloat16"), interpreter, tokenizer, capacities)
