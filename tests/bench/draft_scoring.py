"""What scoring costs: against the same draft's plain prefill, and in memory as the prompt grows.

    python tests/bench/draft_scoring.py time --model DIR [--tokens 4096] [--rounds 5]
    python tests/bench/draft_scoring.py conversation --model DIR [--tokens 8000]
    python tests/bench/draft_scoring.py reuse [--prompts 2000]
    python tests/bench/draft_scoring.py memory [--lengths 4096,8192,16384,32768]

`time` interleaves the two, so that whatever else the machine does hits both, and compares medians; processor time is
given beside wall time because it does not count the waiting for a shared core. `memory` starts one process for each
length, on a model of random weights that is small enough to read 32,768 tokens in a minute. Each prints a table and one
JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch

from presift.core.policies import Heads, SpecPc
from presift.draft import head_profile
from presift.draft.scorer import Cancel, ScoreTask
from presift.draft.transformers_scorer import DTYPES, TransformersScorer
from presift.models import torchvision_ops
from presift.models.folder import resolve

POLICIES = {
    "plain": None,
    "default": SpecPc(capacity=512),
    "authors": SpecPc(capacity=512, window=64, kernel=64, neighbors=64),
}


def main() -> int:
    options = _parser().parse_args()
    result = options.run(options)
    print(json.dumps({"bench": f"draft_scoring {options.command}", **_where(), **result}))
    return 0


def run_time(options: argparse.Namespace) -> dict[str, Any]:
    """Wall and processor seconds of one prompt: stock model in stock chunks, then our scorer without and with rows."""
    ids = np.random.default_rng(0).integers(100, 20_000, options.tokens).astype(np.uint32)
    scorer = TransformersScorer(resolve(options.model), options.dtype, chunk_tokens=options.chunk_tokens)
    works: dict[str, Callable[[], object]] = {"stock": _stock_prefill(options, ids)}
    for name, policy in POLICIES.items():
        works[name] = lambda policy=policy: scorer.score(ScoreTask(ids, policy), Cancel())  # type: ignore[misc]
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(options.rounds):
        for name, work in works.items():
            seconds[name].append(_timed(work))
    return _compare(seconds, options)


def _stock_prefill(options: argparse.Namespace, ids: np.ndarray) -> Callable[[], object]:
    torchvision_ops.declare_missing()
    from transformers import AutoModelForCausalLM, DynamicCache

    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=DTYPES[options.dtype], attn_implementation="sdpa", local_files_only=True
    ).eval()
    chunks = torch.from_numpy(ids.astype("int64"))[None].tensor_split(-(-ids.size // options.chunk_tokens), dim=1)

    @torch.inference_mode()
    def prefill() -> None:
        cache = DynamicCache(config=model.config)
        for chunk in chunks:
            model.base_model(input_ids=chunk, past_key_values=cache, use_cache=True)

    return prefill


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def _compare(seconds: dict[str, list[tuple[float, float]]], options: argparse.Namespace) -> dict[str, Any]:
    """Medians, and the best wall time: on a machine with other work the best is the least disturbed."""
    rows = {
        name: {"wall": statistics.median(wall), "best_wall": min(wall), "cpu": statistics.median(processor)}
        for name, (wall, processor) in ((name, zip(*runs, strict=True)) for name, runs in seconds.items())
    }
    print(f"{options.model}, {options.dtype}, {options.tokens} tokens in chunks of {options.chunk_tokens}")
    print(f"{'':10}" + "".join(f"{kind + ' s':>12}{'of stock':>10}" for kind in rows["stock"]))
    for name, row in rows.items():
        print(f"{name:10}" + "".join(f"{row[kind]:12.3f}{row[kind] / rows['stock'][kind]:10.3f}" for kind in row))
    return {"tokens": options.tokens, "model": Path(options.model).name, "dtype": options.dtype, "seconds": rows}


def run_conversation(options: argparse.Namespace) -> dict[str, Any]:
    """Processor seconds of ten turns that grow to `tokens`, with and without prefix reuse, in readings of the last."""
    folder = resolve(options.model)
    profile = head_profile.find("auto", folder, Path("/nonexistent"))
    ids = np.random.default_rng(0).integers(100, 20_000, options.tokens).astype(np.uint32)
    policy = SpecPc(capacity=512, heads=Heads.ALL if profile is None else Heads.CALIBRATED)
    seconds = {}
    for name, kept_bytes in (("reuse", 2**31), ("no reuse", 0)):
        scorer = TransformersScorer(
            folder, options.dtype, chunk_tokens=options.chunk_tokens, profile=profile, prefix_cache_bytes=kept_bytes
        )
        scorer.score(ScoreTask(ids[:600][::-1].copy(), policy), Cancel())
        ends = range(options.tokens // 10, options.tokens + 1, options.tokens // 10)
        turns = [_timed(partial(scorer.score, ScoreTask(ids[:end], policy), Cancel()))[1] for end in ends]
        seconds[name] = {"turns": turns, "total": sum(turns)}
    one = seconds["no reuse"]["turns"][-1]
    for name, found in seconds.items():
        print(f"{name:10}{found['total']:10.1f} s{found['total'] / one:8.2f} readings of the last prompt")
    return {"tokens": options.tokens, "model": Path(options.model).name, "seconds": seconds}


def run_memory(options: argparse.Namespace) -> dict[str, Any]:
    """Peak resident bytes above the loaded and warmed-up model, per prompt length."""
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or _random_model(Path(folder))
        for length in map(int, options.lengths.split(",")):
            command = [sys.executable, __file__, "peak", "--model", str(model), "--tokens", str(length)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found = json.loads(output.splitlines()[-1])
            peaks[length] = {name: round(found[name], 2) for name in ("mib", "seconds")}
    print(f"{'tokens':>10}{'peak MiB':>10}{'KiB/token':>12}{'seconds':>10}")
    for length, peak in peaks.items():
        print(f"{length:10}{peak['mib']:10.1f}{peak['mib'] * 1024 / length:12.2f}{peak['seconds']:10.1f}")
    return {"peaks": peaks}


def run_peak(options: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own: the peak of one prompt, above what the process had before."""
    scorer = TransformersScorer(resolve(options.model), options.dtype, chunk_tokens=options.chunk_tokens)
    ids = np.random.default_rng(0).integers(100, 500, options.tokens).astype(np.uint32)
    policy = SpecPc(capacity=512, window=64, start_layer=0)
    scorer.score(ScoreTask(ids[: 2 * options.chunk_tokens], policy), Cancel())
    before, started = _peak_mib(), time.perf_counter()
    scorer.score(ScoreTask(ids, policy), Cancel())
    return {"mib": _peak_mib() - before, "seconds": time.perf_counter() - started}


def run_reuse(options: argparse.Namespace) -> dict[str, Any]:
    """Resident MiB while distinct prompts of 500 tokens fill a prefix cache of 1 GiB many times over."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = resolve(options.model or _random_model(Path(temporary)))
        scorer = TransformersScorer(folder, options.dtype, prefix_cache_bytes=2**30)
        start, resident = _resident_mib(), {}
        for number in range(1, options.prompts + 1):
            ids = np.random.default_rng(number).integers(100, 500, 500).astype(np.uint32)
            scorer.score(ScoreTask(ids, SpecPc(capacity=128, start_layer=0), salt=str(number % 3)), Cancel())
            if number % (options.prompts // 8) == 0:
                resident[number] = round(_resident_mib() - start, 1)
                print(f"{number:6} prompts: {resident[number]:8.1f} MiB above the loaded model", flush=True)
    return {"prompts": options.prompts, "resident_mib": resident}


def _resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _random_model(folder: Path) -> Path:
    torchvision_ops.declare_missing()
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
        max_position_embeddings=65_536,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _where() -> dict[str, Any]:
    command = ["git", "rev-parse", "--verify", "--quiet", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "commit": commit or None,
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_average": os.getloadavg()[0],
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} x {len(names)}" if names else platform.processor()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run, dtype in (
        ("time", run_time, "bfloat16"),
        ("conversation", run_conversation, "bfloat16"),
        ("memory", run_memory, "float32"),
        ("reuse", run_reuse, "float32"),
        ("peak", run_peak, "float32"),
    ):
        command = commands.add_parser(name)
        command.add_argument("--model", required=name not in {"memory", "reuse"})
        command.add_argument("--dtype", default=dtype, choices=sorted(DTYPES))
        command.add_argument("--tokens", type=int, default=4096)
        command.add_argument("--chunk-tokens", type=int, default=512)
        command.add_argument("--rounds", type=int, default=5)
        command.add_argument("--prompts", type=int, default=2000)
        command.add_argument("--lengths", default="4096,8192,16384,32768")
        command.set_defaults(run=run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
