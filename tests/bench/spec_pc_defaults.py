"""Which scoring spec_pc should use by default: recall of answers, by heads, lookahead, window, pooling and capacity.

    python tests/bench/spec_pc_captures.py --draft DIR --tokenizer DIR --seeds 20 30
    python tests/bench/spec_pc_defaults.py [SCORING ...] --draft DIR --seeds 20 [--confirm 30]

Works on what `spec_pc_captures` kept, so that a scoring costs no run of the model. A scoring is written as its heads,
reduction and what differs from today's default: `12-23:max,look8` (all heads of layers 12 to 23, the default without a
profile), `profile:sum`, `profile16:head_max,w64,max7,n32` (the first 16 heads of the shipped profile), `worth20x64:sum`
(the best 64 heads below layer 20, by `--worth`), `profile:sum|8-15:head_max` (two, joined by rank). Prints one line for
each: recall, prompts won and lost against the first, layers that run.
"""

from __future__ import annotations

import argparse
import bisect
import functools
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from spec_pc_captures import CACHE, DEFAULTS, LENGTHS, WINDOWS, Captured, load

from presift.core.policies import Pool, SpecPc
from presift.core.remapping import remapped
from presift.core.selection import select
from presift.core.spans import must_keep
from presift.draft import head_profile
from presift.models.folder import resolve

CAPACITIES = (256, 512, 1024, 2048)
# Among the recalls by capacity: the least capacity that keeps all answers.
NEEDED = 0
_HEADS = re.compile(r"(?P<first>\d+)-(?P<last>\d+)|profile(?P<best>\d*)|worth(?P<depth>\d+)x(?P<count>\d+)")
# The first tokens draw attention whatever they are (arXiv 2309.17453).
_SINK_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Ranking:
    """All heads of the draft: the profile's order, and their worth, float64[layers, heads], if it is known."""

    profile: tuple[tuple[int, int], ...]
    worth: NDArray[np.float64] | None

    def heads(self, named: str) -> list[tuple[int, int]]:
        """(layer, head) pairs; of whole layers the head is -1."""
        found = _HEADS.fullmatch(named)
        if found is None:
            raise SystemExit(f"unknown heads: {named}")
        if found["first"]:
            return [(layer, -1) for layer in range(int(found["first"]), int(found["last"]) + 1)]
        if found["depth"]:
            assert self.worth is not None, "--worth"
            order = np.argsort(-self.worth[: int(found["depth"])], axis=None, kind="stable")
            return [divmod(int(each), self.worth.shape[1]) for each in order[: int(found["count"])]]
        return list(self.profile[: int(found["best"] or len(self.profile))])


@dataclass(frozen=True, slots=True)
class Scoring:
    """How one draft's rows become a mask. `parts`: (heads, reduction) pairs, joined by rank."""

    name: str
    parts: tuple[tuple[tuple[tuple[int, int], ...], str], ...]
    rows: str = "w32"
    lookahead: str = ""
    policy: SpecPc = DEFAULTS.spec_pc

    @property
    def layers_run(self) -> int:
        """0 for all of them, which the lookahead needs."""
        return 0 if self.lookahead else 1 + max(layer for heads, _ in self.parts for layer, _ in heads)

    def importance(self, captured: Captured) -> NDArray[np.float32]:
        """float32[n], by the target's tokens."""
        found = [self._reduced(captured, heads, reduction) for heads, reduction in self.parts]
        if len(found) == 1:
            return found[0]
        # The better of the two ranks decides. Pooled first: a rank says nothing of the neighbours.
        ranks = [np.argsort(np.argsort(-each, kind="stable"), kind="stable") for each in found]
        joined: NDArray[np.float32] = (1 / (1 + np.min(ranks, axis=0))).astype(np.float32)
        return joined

    def recall(self, captured: Captured) -> dict[int, float]:
        """The share of the answers' tokens that are kept, by capacity."""
        importance, answers, found = self.importance(captured), captured.values["answers"], {}
        for capacity in CAPACITIES:
            kept = select(importance, replace(self.policy, capacity=capacity), captured.protected).kept
            found[capacity] = float(kept[answers].mean())
        return found | {NEEDED: self._needed(importance, captured)}

    def _needed(self, importance: NDArray[np.float32], captured: Captured) -> int:
        """The least capacity that keeps all answers. Smaller masks are subsets of larger ones."""
        answers, protected = captured.values["answers"], captured.protected
        least = np.count_nonzero(must_keep(protected, importance.size, self.policy.window))
        sizes = range(int(least), importance.size + 1)
        return sizes[
            bisect.bisect_left(
                sizes,
                1,
                key=lambda size: select(importance, replace(self.policy, capacity=size), protected).kept[answers].all(),
            )
        ]

    def _reduced(self, captured: Captured, heads: tuple[tuple[int, int], ...], reduction: str) -> NDArray[np.float32]:
        names = [self.rows, *([self.lookahead] if self.lookahead else ())]
        if reduction == "max":
            reduced = functools.reduce(np.maximum, (_rows(captured, f"{name} max", heads).max(0) for name in names))
        else:
            sums = functools.reduce(np.add, (_rows(captured, f"{name} sum", heads) for name in names))
            if reduction.startswith("share_"):  # each head counts alike
                sums = sums / np.maximum(sums[:, _SINK_TOKENS:].sum(-1, keepdims=True), 1e-6)
            reduced = sums.sum(0) if reduction.endswith("sum") else sums.max(0)
        values = captured.values
        if "draft_offsets" in values:
            reduced = remapped(reduced, values["draft_offsets"], values["target_offsets"])
        result: NDArray[np.float32] = reduced.astype(np.float32)
        return result


def _rows(captured: Captured, statistic: str, heads: tuple[tuple[int, int], ...]) -> NDArray[np.float32]:
    """float32[heads, n]."""
    recorded = _recorded(captured, statistic)
    layers = [layer for layer, _ in heads]
    if heads[0][1] < 0:
        whole: NDArray[np.float32] = recorded[layers].reshape(-1, recorded.shape[-1])
        return whole
    some: NDArray[np.float32] = recorded[layers, [head for _, head in heads]]
    return some


@functools.lru_cache(maxsize=12)
def _recorded(captured: Captured, statistic: str) -> NDArray[np.float32]:
    recorded: NDArray[np.float32] = captured.values.get(statistic)
    if recorded is None:  # no token was generated
        recorded = np.zeros_like(captured.values["w32 sum"])
    return recorded


def parse(text: str, ranking: Ranking) -> Scoring:
    """A scoring as the command line writes it."""
    first, *changes = text.split(",")
    parts = []
    for part in first.split("|"):
        heads, _, reduction = part.partition(":")
        parts.append((tuple(ranking.heads(heads)), reduction or "max"))
    scoring = Scoring(text, tuple(parts))
    for change in changes:
        scoring = _changed(scoring, change)
    return scoring


def _changed(scoring: Scoring, change: str) -> Scoring:
    name, number = re.fullmatch(r"([a-z]+)(\d+)", change).groups()  # type: ignore[union-attr]
    if name == "look":
        return replace(scoring, lookahead=change)
    if change in WINDOWS:
        return replace(scoring, rows=change, policy=replace(scoring.policy, capacity=64, window=WINDOWS[change][0]))
    if name == "n":
        return replace(scoring, policy=replace(scoring.policy, neighbors=int(number)))
    return replace(scoring, policy=replace(scoring.policy, pool=Pool(name), kernel=int(number)))


def grid(layers: int, has_worth: bool) -> Iterator[str]:
    """The scorings that are compared if none is named; the first is the default without a profile."""
    half = layers // 2
    yield f"{half}-{layers - 1}:max,look8"
    yield from (f"{half}-{layers - 1}:max,look4", f"{half}-{layers - 1}:max")
    depths = sorted({half + half // 3, 17 * layers // 24, 2 * layers // 3, 5 * layers // 6})
    named = ["profile", "profile16", "profile8"]
    named += [f"{first}-{depth - 1}" for depth in depths for first in (depth // 3, depth // 2, 2 * depth // 3)]
    if has_worth:
        named += [f"worth{depth}x{count}" for depth in (*depths, layers) for count in (16, 32, 64, 96)]
    for heads in named:
        yield from (f"{heads}:{way}" for way in ("max", "sum", "head_max", "share_sum", "share_max"))


def main() -> int:
    options = _parser().parse_args()
    folder = resolve(options.draft)
    profile = head_profile.find("auto", folder, Path("/nonexistent"))
    ranking = Ranking(() if profile is None else profile.heads, None if not options.worth else np.load(options.worth))
    rows = _read(options.cache / f"recall-{folder.path.name}.jsonl")
    layers = int(json.loads((folder.path / "config.json").read_text())["num_hidden_layers"])
    scorings = [parse(each, ranking) for each in options.scorings or grid(layers, ranking.worth is not None)]
    with (options.cache / f"recall-{folder.path.name}.jsonl").open("a") as stream:
        for captured in load(options.cache, folder.path.name):
            if captured.seed not in (*options.seeds, *options.confirm):
                continue
            for scoring in scorings:
                if (captured.name, scoring.name) not in rows:
                    rows[captured.name, scoring.name] = found = scoring.recall(captured)
                    stream.write(json.dumps([captured.name, scoring.name, found]) + "\n")
            _recorded.cache_clear()
    for seeds in filter(None, (options.seeds, options.confirm)):
        _print(rows, scorings, seeds, layers)
    return 0


def _read(file: Path) -> dict[tuple[str, str], dict[int, float]]:
    """What was found before: recall by prompt and scoring."""
    if not file.exists():
        return {}
    lines = (json.loads(line) for line in file.read_text().splitlines())
    return {(prompt, name): {int(size): each for size, each in found.items()} for prompt, name, found in lines}


def _print(rows: dict[Any, Any], scorings: list[Scoring], seeds: list[int], layers: int) -> None:
    first = scorings[0].name
    prompts = [name for name, scoring in rows if scoring == first and int(name.rsplit("-", 1)[1]) in seeds]
    print(
        f"seeds {seeds}: {len(prompts)} prompts; recall at {CAPACITIES}, at 512 by length {LENGTHS}, won and lost, "
        "least capacity that keeps all (median, 9 of 10 prompts, won and lost), layers"
    )
    for scoring in scorings:
        pairs = [(rows[name, scoring.name], rows[name, first]) for name in prompts]
        recall = "/".join(f"{np.mean([found[size] for found, _ in pairs]):.3f}" for size in CAPACITIES)
        paired = [
            f"+{sum(found[size] > base[size] for found, base in pairs)}"
            f"-{sum(found[size] < base[size] for found, base in pairs)}"
            for size in CAPACITIES
        ]
        needed = np.array([(found[NEEDED], base[NEEDED]) for found, base in pairs])
        least = f"{np.quantile(needed[:, 0], 0.5):5.0f} {np.quantile(needed[:, 0], 0.9):5.0f} "
        least += f"+{np.sum(needed[:, 0] < needed[:, 1])}-{np.sum(needed[:, 0] > needed[:, 1])}"
        lengths = [
            f"{np.mean([rows[name, scoring.name][512] for name in prompts if f'-{length}-' in name]):.3f}"
            for length in LENGTHS
        ]
        run = f"{scoring.layers_run or layers}{'+' + scoring.lookahead if scoring.lookahead else ''}"
        print(f"{scoring.name:34} {recall}  {'/'.join(lengths)}  {' '.join(paired)}  {least}  layers {run}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scorings", nargs="*", help="scorings to compare, the first with all others; a grid if none")
    parser.add_argument("--draft", required=True, help="folder of the draft")
    parser.add_argument("--seeds", nargs="+", type=int, required=True, help="prompts to choose on")
    parser.add_argument("--confirm", nargs="+", type=int, default=(), help="prompts to confirm the choice on")
    parser.add_argument("--worth", type=Path, help=".npy: float[layers, heads], how much each head points at facts")
    parser.add_argument("--cache", type=Path, default=CACHE)
    return parser


if __name__ == "__main__":
    sys.exit(main())
