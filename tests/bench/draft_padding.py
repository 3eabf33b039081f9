"""What batching would save in the transformers scorer: prompts in one forward, padded, against one after the other.

    python tests/bench/draft_padding.py --model DIR [--rounds 5]

The prompts have 300 tokens, all alike (nothing is padded) or in the mean (150 to 450). The best round of each counts.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from process_usage import Used

from presift.draft.transformers_scorer import DTYPES
from presift.models import torchvision_ops


def main() -> int:
    options = _parser().parse_args()
    torchvision_ops.declare_missing()
    from transformers import AutoModel

    model = AutoModel.from_pretrained(options.model, dtype=DTYPES[options.dtype], local_files_only=True).eval()
    for count in (4, 8):
        for lengths in (np.full(count, 300), np.linspace(150, 450, count).astype(int)):
            taken = _both_ways(model, lengths.tolist(), options.rounds)
            saved = {name: round(1 - taken["together"][name] / taken["alone"][name], 3) for name in ("wall_s", "cpu_s")}
            print(json.dumps({"lengths": lengths.tolist(), **taken, "saved": saved}), flush=True)
    return 0


@torch.inference_mode()
def _both_ways(model: Any, lengths: Sequence[int], rounds: int) -> dict[str, dict[str, float]]:
    """The best round of each way, in turn."""
    prompts = [torch.randint(100, 20_000, (1, length)) for length in lengths]
    padded = torch.cat([torch.nn.functional.pad(each, (0, max(lengths) - each.shape[1])) for each in prompts])
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    mask_argument = {} if bool(mask.all()) else {"attention_mask": mask}
    ways: dict[str, Callable[[], object]] = {
        "alone": lambda: [model(input_ids=each, use_cache=True) for each in prompts],
        "together": lambda: model(input_ids=padded, use_cache=True, **mask_argument),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            used = Used()
            way()
            found[name].append(used.so_far())
    return {
        name: {part: min(each[part] for each in runs[1:]) for part in ("wall_s", "cpu_s")}
        for name, runs in found.items()
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="bfloat16", choices=sorted(DTYPES))
    parser.add_argument("--rounds", type=int, default=5)
    return parser


if __name__ == "__main__":
    sys.exit(main())
