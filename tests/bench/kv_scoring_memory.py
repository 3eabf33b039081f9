"""Peak extra memory of scoring one layer for SpecKV, at a prompt of 65,536 tokens, on tensors of real shapes.

    python tests/bench/kv_scoring_memory.py [--tokens 65536] [--layers 28]

Ours is the plugin's own path, `attention.ForwardPass`: keys are gathered from a pool whose slots lie in random
order, scored, and reduced to indices. `split` has the scoring rows arrive in two chunks of the prompt, with the rest
of `--layers`
left half scored in between. `naive` scores all heads and rows at once. A process for each; what counts is the peak of
resident memory above what it had once its inputs were there. Prints a table and one JSON line; fails over 512 MiB.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import time
from array import array
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

from presift.core.kv_plan import KvPlan
from presift.core.policies import SpecKv
from presift.target.sglang_plugin.attention import ForwardPass
from presift.target.sglang_plugin.custom_params import KEY
from presift.target.sglang_plugin.kv_selector import KvSelector
from presift.target.sglang_plugin.states import DecodeState, ScoringState

LIMIT_MIB = 512
HEADS, HEAD_DIM, WINDOW, LOOKAHEAD, CAPACITY = 32, 128, 32, 24, 512
ROWS = WINDOW + 1 + LOOKAHEAD


def main() -> int:
    options = _parser().parse_args()
    if options.way:
        print(json.dumps(_peak(options)))
        return 0
    cases = itertools.product(("bfloat16", "float32"), (8, 32), ("whole", "split", "naive"))
    rows = [_in_a_process(options, *case) for case in cases]
    print(f"{'keys':10}{'KV heads':>9}  {'rows':7}{'peak MiB':>10}{'ms a layer':>12}")
    for row in rows:
        print(f"{row['dtype']:10}{row['kv_heads']:9}  {row['way']:7}{row['mib']:10.0f}{row['ms']:12.0f}")
    worst = max(row["mib"] for row in rows if row["way"] != "naive")
    print(json.dumps({"bench": "kv_scoring_memory", "tokens": options.tokens, "worst_mib": worst, "rows": rows}))
    return int(worst >= LIMIT_MIB)


def _in_a_process(options: argparse.Namespace, dtype: str, kv_heads: int, way: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--tokens", str(options.tokens), "--layers", str(options.layers)]
    command += ["--dtype", dtype, "--kv-heads", str(kv_heads), "--way", way]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {"dtype": dtype, "kv_heads": kv_heads, "way": way, **json.loads(output.splitlines()[-1])}


def _peak(options: argparse.Namespace) -> dict[str, float]:
    """A short prompt first: libraries are loaded and threads started by then."""
    work = {"whole": _whole, "split": _split, "naive": _naive}[options.way]
    work(Layer(2048, options), 1)()
    ready = work(Layer(options.tokens, options), options.layers)
    before, started = _peak_mib(), time.perf_counter()
    scored = ready()
    return {"mib": _peak_mib() - before, "ms": (time.perf_counter() - started) * 1e3 / scored}


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Layer:
    """Random queries of the scoring rows, and a pool's keys (in slots of random order), filled in place."""

    def __init__(self, tokens: int, options: argparse.Namespace) -> None:
        dtype = getattr(torch, options.dtype)
        self.tokens = tokens
        self.queries = torch.empty(ROWS, HEADS * HEAD_DIM, dtype=dtype).normal_()
        self.keys = torch.empty(tokens + LOOKAHEAD, options.kv_heads, HEAD_DIM, dtype=dtype).normal_()
        self.slots = torch.randperm(tokens + LOOKAHEAD, dtype=torch.int32)[None]
        self.first_row = tokens - 1 - WINDOW

    def named(self, layer: int) -> Any:
        """The layer, as SGLang's attention hands it to the hook."""
        shape = {"tp_q_head_num": HEADS, "qk_head_dim": HEAD_DIM}
        return SimpleNamespace(layer_id=layer, scaling=HEAD_DIM**-0.5, **shape)

    def scoring(self, layers: int) -> ScoringState:
        plan = KvPlan(SpecKv(capacity=CAPACITY, window=WINDOW), lookahead_token_ids=(1,) * LOOKAHEAD)
        protected = torch.from_numpy(plan.must_keep(self.tokens)[: self.first_row])
        scores = KvSelector(plan.policy, self.tokens, LOOKAHEAD, CAPACITY, layers, protected)
        return ScoringState(DecodeState(plan, array("q", bytes(8 * self.tokens)), CAPACITY, "", None, 0), scores)

    def read(self, state: ScoringState, start: int, rows: int) -> ForwardPass:
        """A pass of SGLang's that reads `rows` tokens after the first `start`."""
        request = SimpleNamespace(
            sampling_params=SimpleNamespace(custom_params={KEY: state}), kv=SimpleNamespace(req_pool_idx=0)
        )
        batch = SimpleNamespace(reqs=[request], prefix_lens=[start], extend_lens=[rows])
        mode = SimpleNamespace(is_extend=lambda: True)
        runner = SimpleNamespace(
            token_to_kv_pool=SimpleNamespace(get_key_buffer=lambda layer: self.keys),
            req_to_token_pool=SimpleNamespace(req_to_token=self.slots),
        )
        reading = ForwardPass()
        reading.begin(SimpleNamespace(positions=torch.arange(rows), forward_mode=mode), batch, runner)
        return reading


def _whole(layer: Layer, layers: int) -> Callable[[], int]:
    state = layer.scoring(1)

    def score() -> int:
        layer.read(state, layer.first_row, ROWS).on_attention(layer.queries, layer.named(0))
        return _scored(state)

    return score


def _split(layer: Layer, layers: int) -> Callable[[], int]:
    """Two chunks; each goes through all layers before the next one comes."""
    state = layer.scoring(layers)

    def score() -> int:
        for start, end in ((0, ROWS // 2), (ROWS // 2, ROWS)):
            reading = layer.read(state, layer.first_row + start, end - start)
            for each in range(layers):
                reading.on_attention(layer.queries[start:end], layer.named(each))
        return _scored(state)

    return score


def _scored(state: ScoringState) -> int:
    """The layers scored. A pass survives what fails in it, so it must be asked for."""
    if state.scores is None or not state.scores.is_complete:
        raise RuntimeError("not all layers were scored")
    return state.scores.layers


def _naive(layer: Layer, layers: int) -> Callable[[], int]:
    """The scores of all heads and rows as one tensor, as a plain implementation has them."""

    def score() -> int:
        keys = layer.keys.index_select(0, layer.slots[0].long()).float().permute(1, 2, 0)
        queries = layer.queries.float().view(ROWS, keys.shape[0], -1, HEAD_DIM).permute(1, 2, 0, 3)
        logits = torch.matmul(queries, keys[:, None]) * HEAD_DIM**-0.5
        hidden = torch.ones(ROWS, keys.shape[2], dtype=torch.bool).triu(layer.first_row + 1)
        weights = logits.masked_fill(hidden, -torch.inf).softmax(-1)
        weights[..., : layer.first_row].amax((1, 2)).topk(CAPACITY - WINDOW)
        return 1

    return score


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--dtype", default="bfloat16", help=argparse.SUPPRESS)
    parser.add_argument("--kv-heads", type=int, default=8, help=argparse.SUPPRESS)
    parser.add_argument("--way", choices=("whole", "split", "naive"), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
