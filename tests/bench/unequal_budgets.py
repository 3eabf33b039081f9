"""What unequal KV budgets would hold and cost: the same total per prompt, spread over heads, or over layers and heads.

    python tests/bench/unequal_budgets.py DIR [--capacities 128,256,512]

From what `spec_pc_captures` kept of a draft in DIR, without a model. KV pairs are selected by the last 32 rows of the
prompt, as SnapKV does. Coverage: the share that falls on them of the attention that the rows after the prompt (the
start of the answer) pay to the prompt; the mean, and the worst of all pairs of layer and KV head. Slots: the largest
budget of a head, which is what a request takes of SGLang's pool, as a multiple of the mean budget.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

KV_HEADS = 2
WINDOW, KERNEL = 32, 7
# Ada-KV gives every head at least this share of the equal budget.
LEAST_SHARE = 0.2
Floats = NDArray[np.float32]
Kept = NDArray[np.bool_]
# float32[layers, heads, n] by name, of one prompt.
Rows = Mapping[str, Floats]


def uniform(importance: Floats, capacity: int) -> Kept:
    """`importance` float32[layers, kv_heads, n]: the best `capacity` of every head."""
    return _best(importance, capacity, (2,))


def by_head(importance: Floats, capacity: int) -> Kept:
    """The same total in every layer."""
    return _best(_raised(importance, capacity), capacity * importance.shape[1], (1, 2))


def by_layer_and_head(importance: Floats, capacity: int) -> Kept:
    """The same total."""
    layers, heads, _ = importance.shape
    return _best(_raised(importance, capacity), capacity * layers * heads, (0, 1, 2))


def _raised(importance: Floats, capacity: int) -> Floats:
    """Infinite where a head's own best pairs are kept in any case."""
    return np.where(uniform(importance, int(capacity * LEAST_SHARE)), np.float32(np.inf), importance)


def _best(importance: Floats, count: int, axes: tuple[int, ...]) -> Kept:
    """The `count` largest values over `axes`, which are the last ones."""
    flat = importance.reshape(*importance.shape[: -len(axes)], -1)
    kept = np.zeros(flat.shape, dtype=np.bool_)
    np.put_along_axis(kept, np.argsort(-flat, axis=-1, kind="stable")[..., :count], True, axis=-1)
    return kept.reshape(importance.shape)


def importance_of(rows: Rows) -> Floats:
    """float32[layers, kv_heads, n - WINDOW]: the maximum over the rows and over the heads of a group, pooled."""
    found = _grouped(rows["flat32 max"]).max(axis=2)[..., :-WINDOW]
    padded = np.pad(found, ((0, 0), (0, 0), (KERNEL // 2, KERNEL // 2)))
    return np.lib.stride_tricks.sliding_window_view(padded, KERNEL, axis=2).max(axis=3)


def coverage(rows: Rows, kept: Kept) -> Floats:
    """float32[layers, kv_heads]."""
    later = _grouped(rows["look8 sum"]).sum(axis=2)
    held = np.concatenate([kept, np.ones((*kept.shape[:2], WINDOW), dtype=np.bool_)], axis=2)
    return (later * held).sum(axis=2) / later.sum(axis=2)


def _grouped(values: Floats) -> Floats:
    layers, heads, n = values.shape
    return values.reshape(layers, KV_HEADS, heads // KV_HEADS, n)


SPREADS: tuple[Callable[[Floats, int], Kept], ...] = (uniform, by_head, by_layer_and_head)


def main() -> int:
    options = _parser().parse_args()
    found: dict[tuple[int, str], list[tuple[float, float, float]]] = {}
    for file in sorted(options.captures.glob("*.npz")):
        with np.load(file) as rows:
            importance = importance_of(rows)
            for capacity in map(int, options.capacities.split(",")):
                for spread in SPREADS:
                    kept = spread(importance, capacity - WINDOW)
                    shares, budgets = coverage(rows, kept), kept.sum(axis=2) + WINDOW
                    figures = (float(shares.mean()), float(shares.min()), float(budgets.max() / budgets.mean()))
                    found.setdefault((capacity, spread.__name__), []).append(figures)
    print(f"{'capacity':>8} {'spread':20}{'coverage':>9}{'worst':>8}{'slots':>8}  prompts")
    for (capacity, name), figures in found.items():
        mean, worst, slots = np.mean(figures, axis=0)
        print(f"{capacity:8} {name:20}{mean:9.3f}{worst:8.3f}{slots:8.2f}  {len(figures)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captures", type=Path, metavar="DIR")
    parser.add_argument("--capacities", default="128,256,512")
    return parser


if __name__ == "__main__":
    sys.exit(main())
