"""What a cheaper draft loses: recall of the answers and processor time, against today's default in the same run.

Each prompt of `recall_tasks` is scored by each draft: by all heads of the upper half with eight lookahead tokens (the
default without a head profile), by the calibrated heads, and on demand by all heads without lookahead. Recall is
the share of the answers' tokens that the mask keeps. Prints a table, the wins and losses against the default of the
first draft, and one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import recall_tasks
from retrieval_tasks import SYSTEM

from presift.core.policies import SpecPc
from presift.core.remapping import remapped
from presift.core.selection import select
from presift.draft import head_profile
from presift.draft.scorer import Cancel, ScoreTask
from presift.draft.transformers_scorer import DTYPES, TransformersScorer
from presift.models.dtype import native_dtype
from presift.models.folder import resolve
from presift.orchestrator.config.policy_settings import policy_defaults
from presift.orchestrator.config.settings import OrchestratorSettings
from presift.orchestrator.domain.request import Chat, Message, TextPart
from presift.orchestrator.prompt.loader import load_bridge, load_tokenizer

CAPACITIES = (256, 512, 1024)
# Wanted tokens: a third of the prompts has 8,000. Seeds 0 and 1 were read while the calibration was designed.
LENGTHS = (2000, 4000, 8000)
DEFAULTS = policy_defaults(OrchestratorSettings.model_construct())


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt scored one way: recall by capacity, processor seconds."""

    prompt: str
    kind: str
    tokens: int
    method: str
    recall: dict[int, float]
    seconds: float


def main() -> int:
    options = _parser().parse_args()
    rows = [row for draft in options.draft for dtype in options.dtypes for row in _read(draft, dtype, options)]
    _print(rows)
    print(json.dumps({"bench": "draft_recall", "load_average": os.getloadavg()[0], **_summary(rows)}))
    return 0


def _read(draft: str, dtype: str, options: argparse.Namespace) -> list[Row]:
    folder, tokenizer = resolve(draft), load_tokenizer(options.tokenizer, 1 << 20)
    profile = head_profile.find("auto", folder, Path("/nonexistent"))
    scorer = TransformersScorer(folder, dtype, profile=profile)
    bridge = load_bridge(draft, tokenizer)
    upper = replace(DEFAULTS, calibrated=None).for_draft(scorer.info).spec_pc
    methods = {"default": upper}
    if options.no_lookahead:
        methods["no lookahead"] = replace(upper, lookahead_tokens=1)
    if profile is not None and DEFAULTS.calibrated is not None:
        methods["calibrated"] = DEFAULTS.calibrated
    rows = []
    for tokens in LENGTHS:
        for seed in options.seeds:
            for kind in options.kinds:
                task = recall_tasks.make(kind, tokens, seed, lambda text: len(tokenizer.backend.encode(text)))
                for name, policy in methods.items():
                    row = _score(scorer, tokenizer, bridge, task, policy)
                    rows.append(replace(row, prompt=f"{kind}-{tokens}-{seed}", method=f"{folder.id} {dtype} {name}"))
                print(rows[-1], file=sys.stderr, flush=True)
    return rows


def _score(scorer: Any, tokenizer: Any, bridge: Any, task: recall_tasks.RecallTask, policy: SpecPc) -> Row:
    parts = (TextPart(task.document), TextPart(f"\n\n{task.question} Reply with the answer alone."))
    chat = Chat((Message("system", (TextPart(SYSTEM),)), Message("user", parts)))
    prompt = asyncio.run(tokenizer.tokenize(chat))
    wanted = _answer_tokens(tokenizer, chat, task)
    started = time.process_time()
    importance, mass = _importance(scorer, bridge, prompt.ids, policy)
    seconds = time.process_time() - started
    recall = {}
    for capacity in CAPACITIES:
        kept = select(importance, replace(policy, capacity=capacity), prompt.protected, mass).kept
        recall[capacity] = float(kept[wanted].mean())
    return Row("", task.kind, int(prompt.ids.size), "", recall, seconds)


def _importance(scorer: Any, bridge: Any, ids: Any, policy: SpecPc) -> tuple[Any, Any]:
    """float32[prompt tokens] each; of a draft with another vocabulary as the orchestrator maps it."""
    policy = replace(policy, capacity=policy.window)
    if bridge is None:
        scored = scorer.score(ScoreTask(ids, policy), Cancel())
        return scored.importance, scored.coverage_importance
    prompt = bridge.translate(ids)
    window = prompt.draft_window(policy.window)
    scored = scorer.score(ScoreTask(prompt.ids, replace(policy, capacity=window, window=window)), Cancel())
    first, second = (
        remapped(each, prompt.draft_offsets, prompt.target_offsets)
        for each in (scored.importance, scored.coverage_importance)
    )
    return first, second


def _answer_tokens(tokenizer: Any, chat: Chat, task: recall_tasks.RecallTask) -> list[int]:
    """The prompt's tokens that overlap an answer in its fact."""
    text, offsets = asyncio.run(tokenizer.render_with_offsets(chat))
    wanted = []
    for fact, answer in task.needles:
        start = text.index(fact) + fact.index(answer)
        end = start + len(answer)
        wanted += [token for token, (first, last) in enumerate(offsets) if last > start and first < end]
    return wanted


def _summary(rows: list[Row]) -> dict[str, Any]:
    """Means by method, and paired with the first method: wins, losses and the ratio of processor time."""
    by_method: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_method[row.method].append(row)
    first = {row.prompt: row for row in next(iter(by_method.values()))}
    found = {}
    for method, each in by_method.items():
        pairs = [(row, first[row.prompt]) for row in each]
        found[method] = {
            "prompts": len(each),
            "recall": {size: round(statistics.mean(row.recall[size] for row in each), 4) for size in CAPACITIES},
            "wins": {size: sum(row.recall[size] > base.recall[size] for row, base in pairs) for size in CAPACITIES},
            "losses": {size: sum(row.recall[size] < base.recall[size] for row, base in pairs) for size in CAPACITIES},
            "cost": {
                tokens: round(
                    statistics.median(_cost(row, base) for row, base in pairs if f"-{tokens}-" in row.prompt), 3
                )
                for tokens in LENGTHS
            },
            "kinds": {
                kind: round(statistics.mean(row.recall[512] for row in each if row.kind == kind), 3)
                for kind in dict.fromkeys(row.kind for row in each)
            },
        }
    return found


def _cost(row: Row, base: Row) -> float:
    return row.seconds / base.seconds


def _print(rows: list[Row]) -> None:
    for method, found in _summary(rows).items():
        recalls = " ".join(f"{value:.3f}" for value in found["recall"].values())
        paired = " ".join(f"+{found['wins'][size]}-{found['losses'][size]}" for size in CAPACITIES)
        print(f"{method:45} recall {recalls}  {paired}  cost {found['cost']}  {found['kinds']}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draft", action="append", required=True, help="folder of a draft; the first is the baseline")
    parser.add_argument("--tokenizer", required=True, help="folder of the target, whose tokens are counted")
    parser.add_argument("--kinds", nargs="+", choices=recall_tasks.KINDS, default=recall_tasks.KINDS)
    parser.add_argument("--seeds", nargs="+", type=int, default=(10,))
    parser.add_argument("--dtypes", nargs="+", choices=(*DTYPES, "int8"), default=(native_dtype("cpu"),))
    parser.add_argument("--no-lookahead", action="store_true", help="score by all heads without lookahead too")
    return parser


if __name__ == "__main__":
    sys.exit(main())
