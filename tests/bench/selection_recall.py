"""Recall of a fixed set of questions: what a worse selection would lower. `tests/models` compares it with its floors.

    python tests/bench/selection_recall.py --model ~/.cache/presift/models/smollm2-135m-instruct
    make selection-floors    # with --write

The model, as draft and target, reads four questions of `recall_tasks` for each of five seeds, about 1,300 tokens each.
Recall is the share of the answers' tokens that are kept: with `spec_pc` by all heads and by the calibrated ones, and,
over layers and heads, the share of their KV pairs with `spec_kv`. Prints it for each seed, and one JSON line. `--write`
puts it into `selection_floors.json`, from which the floors follow: the mean over the seeds less three standard errors.
Do so only for a change that is meant to change the selection, and say in its commit what it did to recall.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from numpy.typing import NDArray
from spec_pc_captures import DEFAULTS, answer_tokens, task_of

from presift.core.policies import SpecPc
from presift.core.selection import select
from presift.core.spans import Span, covered
from presift.draft import head_profile
from presift.draft.attention import Observer, RowCapture, ScoredHeads
from presift.draft.layer_attention import LayerAttention
from presift.draft.scorer import Cancel, ScoreTask
from presift.draft.transformers_scorer import TransformersScorer
from presift.models.folder import resolve
from presift.orchestrator.prompt.loader import load_tokenizer
from presift.target.sglang_plugin.kv_selector import KvSelector

SEEDS = (50, 51, 52, 53, 54)
KINDS = ("paraphrase", "several", "code", "multi_hop")
# Of the document, in tokens: SmolLM2 takes four seconds for each prompt on two cores.
LENGTH = 1200
ALL_HEADS, CALIBRATED, KV = "spec_pc, all heads", "spec_pc, calibrated heads", "spec_kv"
# The default policy takes calibrated heads from 512 tokens on.
CAPACITIES = {ALL_HEADS: 256, CALIBRATED: 512, KV: 256}
FLOORS = Path(__file__).parents[1] / "models" / "selection_floors.json"
COMMAND = "make selection-floors"


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """One prompt as the model read it. `importance` float32[n] by way of scoring; `answers` are token positions."""

    seed: int
    answers: Sequence[int]
    protected: tuple[Span, ...]
    policies: dict[str, SpecPc]
    importance: dict[str, NDArray[np.float32]]
    rows: KvRows

    def recall(self) -> dict[str, float]:
        """By way of selection, 0..1."""
        kept = {
            name: select(self.importance[name], replace(policy, capacity=CAPACITIES[name]), self.protected).kept
            for name, policy in self.policies.items()
        }
        kept[KV] = self.rows.kept(self.protected)
        return {name: float(each[..., list(self.answers)].mean()) for name, each in kept.items()}


class KvRows:
    """The queries and keys of the rows by which spec_kv selects: an `Observer` for one prompt of n tokens."""

    def __init__(self, prompt_tokens: int) -> None:
        self._n = prompt_tokens
        self._policy = replace(DEFAULTS.spec_kv, capacity=CAPACITIES[KV])
        self._first = prompt_tokens - 1 - self._policy.window
        self._queries: dict[int, list[torch.Tensor]] = {}
        self._last: dict[int, LayerAttention] = {}

    def observe(self, layer: int, attention: LayerAttention) -> None:
        """See `Observer.observe`."""
        start = max(0, self._first - (attention.keys - attention.rows))
        if start < attention.rows:
            self._queries.setdefault(layer, []).append(attention.query[0, :, start:].transpose(0, 1))
            self._last[layer] = attention

    def kept(self, protected: Sequence[Span]) -> NDArray[np.bool_]:
        """bool[layers, kv_heads, n]: the KV pairs that spec_kv keeps."""
        selector = KvSelector(
            policy=self._policy,
            prompt_tokens=self._n,
            lookahead_tokens=self._last[0].keys - self._n,
            kept_tokens=self._policy.capacity,
            layers=len(self._last),
            protected=torch.from_numpy(covered(protected, self._n)[: self._first]),
            reports_mask=True,
        )
        with torch.inference_mode():
            for layer, last in self._last.items():
                scaling = last.query.shape[-1] ** -0.5 if last.scaling is None else last.scaling
                queries, keys = torch.cat(self._queries[layer]), last.key[0].transpose(0, 1)
                selector.add(layer, queries, self._first, keys, scaling)
        return selector.mask.kept


class PromptRows:
    """Shows `observers` the rows of the prompt, and `kv` those of the lookahead too."""

    def __init__(self, prompt_tokens: int, kv: KvRows, observers: Sequence[Observer]) -> None:
        self._n, self._kv, self._observers = prompt_tokens, kv, observers

    def observe(self, layer: int, attention: LayerAttention) -> None:
        """See `Observer.observe`."""
        self._kv.observe(layer, attention)
        for observer in self._observers if attention.keys <= self._n else ():
            observer.observe(layer, attention)


def readings(model: Path, seeds: Sequence[int] = SEEDS, length: int = LENGTH) -> Iterator[Reading]:
    """Every prompt, read once. One at a time: a reading holds the keys of all layers."""
    folder, tokenizer = resolve(str(model)), load_tokenizer(str(model), 1 << 20)
    profile = head_profile.find("auto", folder, Path("/nonexistent"))
    # Not bfloat16: the floors hold on every CPU.
    scorer = TransformersScorer(folder, "float32", profile=profile)
    defaults = DEFAULTS.for_draft(scorer.info)
    policies = {ALL_HEADS: defaults.spec_pc}
    if profile is not None and defaults.calibrated is not None:
        policies[CALIBRATED] = defaults.calibrated
    for seed in seeds:
        for kind in KINDS:
            task, chat = task_of(kind, length, seed, tokenizer)
            prompt = asyncio.run(tokenizer.tokenize(chat))
            size, captures = int(prompt.ids.size), {}
            if profile is not None and CALIBRATED in policies:
                heads = ScoredHeads(profile.by_layer, profile.reduction)
                captures[CALIBRATED] = RowCapture(size, policies[CALIBRATED], heads, torch.device("cpu"))
            rows = KvRows(size)
            observer = PromptRows(size, rows, list(captures.values()))
            policy = replace(policies[ALL_HEADS], capacity=policies[ALL_HEADS].window)
            scored = scorer.score(ScoreTask(prompt.ids, policy), Cancel(), observer)
            importance: dict[str, Any] = {ALL_HEADS: scored.importance}
            importance |= {name: capture.importance()[0] for name, capture in captures.items()}
            answers = answer_tokens(tokenizer, chat, task)
            yield Reading(seed, answers, prompt.protected, policies, importance, rows)


class Recalls:
    """Recall by way of selection and seed."""

    def __init__(self) -> None:
        self._found: dict[str, dict[int, list[float]]] = {}

    def add(self, seed: int, recall: dict[str, float]) -> None:
        for name, value in recall.items():
            self._found.setdefault(name, {}).setdefault(seed, []).append(value)

    @property
    def by_seed(self) -> dict[str, list[float]]:
        """The mean of each seed, in the order of the seeds."""
        return {
            name: [round(statistics.fmean(values), 4) for values in seeds.values()]
            for name, seeds in self._found.items()
        }

    @property
    def means(self) -> dict[str, float]:
        return {name: statistics.fmean(values) for name, values in self.by_seed.items()}


def floor(values: Sequence[float]) -> float:
    """The mean less three standard errors."""
    return round(statistics.fmean(values) - 3 * statistics.stdev(values) / len(values) ** 0.5, 4)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--write", action="store_true", help=f"write {FLOORS.name}")
    options = parser.parse_args()
    found = Recalls()
    for reading in readings(options.model):
        found.add(reading.seed, reading.recall())
    by_seed = found.by_seed
    floors = {name: floor(values) for name, values in by_seed.items()}
    for name, values in by_seed.items():
        print(f"{name:28} {'  '.join(f'{value:.3f}' for value in values)}  floor {floors[name]:.3f}")
    values = {"command": COMMAND, "seeds": SEEDS, "kinds": KINDS, "capacities": CAPACITIES, "recall": by_seed}
    print(json.dumps({"bench": "selection_recall", "load_average": os.getloadavg()[0], **values}))
    if options.write:
        FLOORS.write_text(json.dumps(values | {"floors": floors}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
