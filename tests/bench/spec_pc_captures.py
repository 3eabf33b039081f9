"""Reads each prompt of `recall_tasks` once and keeps what every head attended to: scorings are compared later.

    python tests/bench/spec_pc_captures.py --draft DIR --tokenizer DIR --seeds 20 30 [--minutes 14]

One file per prompt, in `--cache`: for each statistic of `STATISTICS` float32[layers, heads, draft tokens], and what a
selection needs besides. Prompts that have a file are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import recall_tasks
import torch
from numpy.typing import NDArray
from retrieval_tasks import SYSTEM

from presift.core.importance import window_weights
from presift.core.spans import Span
from presift.draft.layer_attention import LayerAttention
from presift.draft.scorer import Cancel, ScoreTask
from presift.draft.transformers_scorer import TransformersScorer
from presift.models.dtype import native_dtype
from presift.models.folder import resolve
from presift.orchestrator.config.policy_settings import policy_defaults
from presift.orchestrator.config.settings import OrchestratorSettings
from presift.orchestrator.domain.request import Chat, Message, TextPart
from presift.orchestrator.prompt.loader import load_bridge, load_tokenizer

# Wanted tokens: a third of the prompts has 8,000.
LENGTHS = (2000, 4000, 8000)
# Windows: their rows, and whether later rows weigh more (0 to 1, as the policy's default).
WINDOWS = {"w32": (32, True), "w64": (64, True), "flat32": (32, False)}
# The queries of so many generated tokens less one.
LOOKAHEADS = {"look4": 4, "look8": 8}
STATISTICS = tuple(f"{rows} {way}" for rows in (*WINDOWS, *LOOKAHEADS) for way in ("sum", "max"))
CACHE = Path("/tmp/presift-captures")
DEFAULTS = policy_defaults(OrchestratorSettings.model_construct())


@dataclass(frozen=True, slots=True, eq=False)
class Captured:
    """One prompt as one draft read it. Positions count the target's tokens; `values` is read when it is asked for.

    `answers`: the positions of each needle's answer. `default`: the importance by today's default.
    """

    name: str
    values: Any

    @property
    def kind(self) -> str:
        return self.name.rsplit("-", 2)[0]

    @property
    def length(self) -> int:
        return int(self.name.rsplit("-", 2)[1])

    @property
    def seed(self) -> int:
        return int(self.name.rsplit("-", 2)[2])

    @property
    def protected(self) -> tuple[Span, ...]:
        return tuple(Span(int(start), int(end)) for start, end in self.values["protected"])


def load(cache: Path, draft: str) -> Iterator[Captured]:
    """What is there of `draft`, the name of its folder."""
    for file in sorted((cache / draft).glob("*.npz")):
        with np.load(file) as values:
            yield Captured(file.stem, values)


def names(seeds: list[int]) -> Iterator[tuple[str, int, int]]:
    """Kind, tokens and seed of each prompt."""
    for seed in seeds:
        for tokens in LENGTHS:
            for kind in recall_tasks.KINDS:
                yield kind, tokens, seed


def task_of(kind: str, tokens: int, seed: int, tokenizer: Any) -> tuple[recall_tasks.RecallTask, Chat]:
    """The task and the chat that asks it."""
    task = recall_tasks.make(kind, tokens, seed, lambda text: len(tokenizer.backend.encode(text)))
    parts = (TextPart(task.document), TextPart(f"\n\n{task.question} Reply with the answer alone."))
    return task, Chat((Message("system", (TextPart(SYSTEM),)), Message("user", parts)))


def answer_tokens(tokenizer: Any, chat: Chat, task: recall_tasks.RecallTask) -> list[int]:
    """The prompt's tokens that overlap an answer in its fact."""
    text, offsets = asyncio.run(tokenizer.render_with_offsets(chat))
    wanted = []
    for fact, answer in task.needles:
        start = text.index(fact) + fact.index(answer)
        end = start + len(answer)
        wanted += [token for token, (first, last) in enumerate(offsets) if last > start and first < end]
    return wanted


class HeadRows:
    """What each head's rows attend to: an `Observer` that keeps every statistic of `STATISTICS`."""

    def __init__(self, prompt_tokens: int, scale: float) -> None:
        """`scale`: draft tokens per target token, by which the orchestrator widens the windows."""
        self._n = prompt_tokens
        self._windows = {
            name: window_weights(max(1, round(rows * scale)), weighted) for name, (rows, weighted) in WINDOWS.items()
        }
        self._first = prompt_tokens - max(each.size for each in self._windows.values())
        self._held: dict[str, dict[int, torch.Tensor]] = {name: {} for name in STATISTICS}

    def observe(self, layer: int, attention: LayerAttention) -> None:
        """See `Observer.observe`."""
        keys, rows = attention.keys, attention.rows
        first = max(self._first, keys - rows)
        if first >= keys:
            return
        probabilities = torch.cat([block for _, block in attention.probabilities(first)], dim=1)[:, :, : self._n]
        if keys > self._n:
            for name, tokens in LOOKAHEADS.items():
                if keys - self._n < tokens:
                    self._add(name, layer, probabilities)
            return
        for name, weights in self._windows.items():
            start = max(first, self._n - weights.size)
            if start < keys:
                part = torch.from_numpy(weights[start - self._n + weights.size :][: keys - start])
                self._add(name, layer, probabilities[:, start - first :] * part[:, None])

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """float32[layers, heads, prompt tokens] by statistic."""
        return {
            name: torch.stack([each[layer] for layer in sorted(each)]).numpy()
            for name, each in self._held.items()
            if each
        }

    def _add(self, name: str, layer: int, attention: torch.Tensor) -> None:
        """attention: float32[heads, rows, keys]."""
        for way, found in (("sum", attention.sum(1)), ("max", attention.amax(1))):
            held = self._held[f"{name} {way}"]
            before = held.setdefault(layer, torch.zeros(len(found), self._n))[:, : found.shape[1]]
            torch.add(before, found, out=before) if way == "sum" else torch.maximum(before, found, out=before)


def capture(scorer: TransformersScorer, bridge: Any, tokenizer: Any, name: tuple[str, int, int]) -> dict[str, Any]:
    """Everything that is kept of one prompt."""
    task, chat = task_of(*name, tokenizer)
    prompt = asyncio.run(tokenizer.tokenize(chat))
    policy = replace(DEFAULTS, calibrated=None).for_draft(scorer.info).spec_pc
    ids, scale, offsets = prompt.ids, 1.0, {}
    if bridge is not None:
        read = bridge.translate(prompt.ids)
        window = read.draft_window(policy.window)
        ids, scale = read.ids, window / policy.window
        policy = replace(policy, capacity=window, window=window)
        offsets = {"draft_offsets": read.draft_offsets, "target_offsets": read.target_offsets}
    rows, started = HeadRows(ids.size, scale), time.process_time()
    scored = scorer.score(ScoreTask(ids, replace(policy, capacity=policy.window)), Cancel(), rows)
    return {
        **rows.arrays(),
        **offsets,
        "default": scored.importance,
        "answers": np.array(answer_tokens(tokenizer, chat, task)),
        "protected": np.array([(each.start, each.end) for each in prompt.protected]).reshape(-1, 2),
        "seconds": time.process_time() - started,
    }


def main() -> int:
    options = _parser().parse_args()
    until = time.monotonic() + 60 * options.minutes
    folder, tokenizer = resolve(options.draft), load_tokenizer(options.tokenizer, 1 << 20)
    into = options.cache / folder.path.name
    into.mkdir(parents=True, exist_ok=True)
    todo = [each for each in names(options.seeds) if not (into / f"{'-'.join(map(str, each))}.npz").exists()]
    if not todo:
        return 0
    scorer, bridge = TransformersScorer(folder, options.dtype), load_bridge(options.draft, tokenizer)
    for name in todo:
        if time.monotonic() > until:
            return 75  # come again
        file, found = into / f"{'-'.join(map(str, name))}.npz", capture(scorer, bridge, tokenizer, name)
        unfinished = file.with_suffix(".tmp.npz.part")
        with unfinished.open("wb") as stream:
            np.savez(stream, **found)
        unfinished.replace(file)
        print(
            f"{file.stem}: {found['default'].size} draft tokens, {found['seconds']:.1f} s of processor time", flush=True
        )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draft", required=True, help="folder of the draft")
    parser.add_argument("--tokenizer", required=True, help="folder of the target, whose tokens are counted")
    parser.add_argument("--seeds", nargs="+", type=int, required=True)
    parser.add_argument("--dtype", default=native_dtype("cpu"))
    parser.add_argument("--cache", type=Path, default=CACHE, help="about 60 MB a prompt with the 0.5B")
    parser.add_argument("--minutes", type=float, default=600, help="start no prompt after so long (status 75)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
