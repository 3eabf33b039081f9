"""The draft's engine: the transformers scorer against SGLang, each reading all layers or only those of the profile.

    python tests/bench/draft_engines.py run --model DIR --rows FILE [--rounds 1] [--arms A,B] [--measures A,B]
    python tests/bench/draft_engines.py table --rows FILE

`run` starts one process for each arm. Both sides score the same random prompts with the same rows and heads, no
lookahead, in chunks of the same size and with as many threads; each may keep 1 GiB of KV. The shipped scorer reads one
prompt after the other, as the draft service does; SGLang gets all prompts at once. Each measurement is one line of
FILE, and what FILE has is not measured again. Processor time and memory are those of all processes of the arm.
Needs a machine with SGLang.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from process_usage import Used, memory_mib, processor_s

from presift.core.policies import Heads, SpecPc
from presift.draft import head_profile
from presift.draft.attention import ScoredHeads
from presift.draft.scorer import Cancel, HeadReduction, ScoreTask
from presift.draft.transformers_scorer import DTYPES, TransformersScorer
from presift.models.folder import ModelFolder, resolve

# The most valuable first: a run may be cut short.
ARMS = ("transformers-early", "sglang-early", "transformers-full", "sglang-full")
KV_BYTES = 2**30
WINDOW = 32
Ids = NDArray[np.uint32]


class Arm(Protocol):
    """One way to score."""

    async def start(self) -> None: ...

    async def score(self, ids: Ids) -> tuple[NDArray[np.float32], int]:
        """float32[n] importance, and how many tokens were cached."""

    async def stop(self) -> None: ...


@dataclass(slots=True)
class TransformersArm:
    """The shipped scorer. Prompts that come together are read one after the other."""

    options: argparse.Namespace
    scorer: Any = None
    policy: Any = None

    async def start(self) -> None:
        folder, options = resolve(self.options.model), self.options
        is_early = options.arm.endswith("early")
        self.scorer = TransformersScorer(
            folder,
            options.dtype,
            chunk_tokens=options.chunk_tokens,
            profile=_profile(folder) if is_early else None,
            prefix_cache_bytes=KV_BYTES,
        )
        heads = Heads.CALIBRATED if is_early else Heads.ALL
        self.policy = SpecPc(capacity=512, window=WINDOW, start_layer=_layers(folder) // 2, heads=heads)

    async def score(self, ids: Ids) -> tuple[NDArray[np.float32], int]:
        found = self.scorer.score(ScoreTask(ids, self.policy), Cancel())
        return found.importance, found.cached_tokens

    async def stop(self) -> None: ...


def _sglang_arm(options: argparse.Namespace) -> Arm:
    from draft_on_sglang import DraftEngine

    from presift.target.sglang.arguments import SglangOptions

    folder = resolve(options.model)
    layers, profile = _layers(folder), None
    scored = ScoredHeads(dict.fromkeys(range(layers // 2, layers)), HeadReduction.MAX)
    if options.arm.endswith("early"):
        profile = _profile(folder)
        scored, layers = ScoredHeads(profile.by_layer, profile.reduction), profile.layers_read
    sglang = SglangOptions(
        folder,
        dtype=options.dtype,
        kv_pool_tokens=KV_BYTES // _kv_bytes_per_token(folder, layers, options.dtype),
        prefill_chunk_tokens=options.chunk_tokens,
        threads=torch.get_num_threads(),
        kv_dropping=False,
        tool_call_parser="none",
        reasoning_parser="none",
    )
    return DraftEngine(sglang, scored, WINDOW, None if profile is None else layers)


def _profile(folder: ModelFolder) -> head_profile.HeadProfile:
    profile = head_profile.find("auto", folder, Path("/nonexistent"))
    if profile is None:
        raise SystemExit(f"{folder.id} has no shipped head profile")
    return profile


def _config(folder: ModelFolder) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder.path / "config.json").read_text())
    return config


def _layers(folder: ModelFolder) -> int:
    return int(_config(folder)["num_hidden_layers"])


def _kv_bytes_per_token(folder: ModelFolder, layers: int, dtype: str) -> int:
    config = _config(folder)
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(2 * layers * config["num_key_value_heads"] * head_dim * DTYPES[dtype].itemsize)


class Measures:
    """What one arm is measured by, for one round. Each method's numbers become one row."""

    def __init__(self, arm: Arm, options: argparse.Namespace, number: int) -> None:
        self._arm, self._options, self._number = arm, options, number

    def all(self) -> dict[str, Callable[[], Awaitable[dict[str, Any]]]]:
        """The measures by name, in the order in which they are taken."""
        at_once = {f"{n} x {tokens}": (n, tokens) for n, tokens in ((1, 4096), (4, 4096), (8, 300), (16, 300))}
        at_once["8 x 4096"] = (8, 4096)  # the longest last
        prompts = {name: lambda how=how: self._concurrent(*how) for name, how in at_once.items()}
        return {"conversation": self._conversation, "importance": self._importance, **prompts}

    async def _conversation(self) -> dict[str, Any]:
        """Ten turns, each the prompt before and 800 tokens more."""
        ids, turns, cached = self._prompt(8_000, "conversation"), [], []
        used = Used()
        for end in range(800, 8_001, 800):
            turn = Used()
            cached.append((await self._arm.score(ids[:end]))[1])
            turns.append(turn.so_far())
        return {**used.so_far(), "cached": cached, "turns": turns}

    async def _concurrent(self, count: int, tokens: int) -> dict[str, Any]:
        prompts = [self._prompt(tokens, f"{count}/{number}") for number in range(count)]
        used, finished = Used(), list[float]()

        async def one(ids: Ids) -> None:
            await self._arm.score(ids)
            finished.append(used.so_far()["wall_s"])

        await asyncio.gather(*map(one, prompts))
        return {**used.so_far(), "mean_wall_s": float(np.mean(finished)), "memory_mib": memory_mib()}

    async def _importance(self) -> dict[str, Any]:
        """Of a fresh prompt, and of one that continues it. Kept beside the rows, for `table` to compare."""
        ids = self._prompt(1_800, "importance")
        found = [await self._arm.score(ids[:end]) for end in (1_201, 1_800)]
        file = _importance_file(self._options.rows, self._options.arm, self._options.dtype)
        np.savez(file, **{f"a{number}": each[0] for number, each in enumerate(found)})
        return {"cached": [cached for _, cached in found]}

    def _prompt(self, tokens: int, name: str) -> Ids:
        seed = [self._number, *name.encode()]
        return np.random.default_rng(seed).integers(100, 20_000, tokens).astype(np.uint32)


async def run_arm(options: argparse.Namespace) -> None:
    """Take one arm's missing measures. In a process of its own."""
    arm = _sglang_arm(options) if options.arm.startswith("sglang") else TransformersArm(options)
    try:
        await arm.start()
        await arm.score(np.arange(100, 164, dtype=np.uint32))
        started = {"wall_s": round(time.time() - psutil.Process().create_time(), 1), "cpu_s": round(processor_s(), 1)}
        if not _is_there(options, "start", 0):
            _write(options, "start", 0, {**started, "memory_mib": memory_mib()})
        await arm.score(np.arange(100, 1_300, dtype=np.uint32)[::-1].copy())  # warm up
        for number in range(options.rounds):
            for name, measure in Measures(arm, options, number).all().items():
                if (options.measures is None or name in options.measures) and not _is_there(options, name, number):
                    _write(options, name, number, await measure())
    finally:
        await arm.stop()


def _key(options: argparse.Namespace, measure: str, number: int) -> dict[str, Any]:
    of_arm = {name: getattr(options, name) for name in ("arm", "dtype", "chunk_tokens")}
    return {"model": Path(options.model).name, **of_arm, "measure": measure, "round": number}


def _is_there(options: argparse.Namespace, measure: str, number: int) -> bool:
    key = _key(options, measure, number)
    return any(key.items() <= row.items() for row in _read(options.rows))


def _read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _write(options: argparse.Namespace, measure: str, number: int, found: dict[str, Any]) -> None:
    row = {**_key(options, measure, number), "threads": torch.get_num_threads(), "load": os.getloadavg()[0], **found}
    with options.rows.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def _importance_file(rows: Path, arm: str, dtype: str) -> Path:
    return rows.with_suffix(f".{arm}-{dtype}.npz")


def run_arms(options: argparse.Namespace) -> None:
    """Each arm in a process of its own."""
    for arm in options.arms or ARMS:
        command = [sys.executable, "-u", __file__, "arm", "--arm", arm, "--model", options.model]
        command += ["--rows", str(options.rows), "--dtype", options.dtype, "--rounds", str(options.rounds)]
        command += ["--chunk-tokens", str(options.chunk_tokens)]
        command += [] if options.measures is None else ["--measures", ",".join(options.measures)]
        subprocess.run(command, check=True)


def print_table(options: argparse.Namespace) -> None:
    """The best round of each measurement, and the largest difference of importance between the engines."""
    best: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in _read(options.rows):
        key = (row["model"], row["dtype"], str(row["chunk_tokens"]), row["measure"], row["arm"])
        if "cpu_s" in row and (key not in best or row["cpu_s"] < best[key]["cpu_s"]):
            best[key] = row
    for key, row in sorted(best.items()):
        memory = " ".join(f"{name} {mib:.0f} MiB" for name, mib in row.get("memory_mib", {}).items())
        mean = f"mean {row['mean_wall_s']:.1f} s" if "mean_wall_s" in row else ""
        print(f"{' '.join(key):80} cpu {row['cpu_s']:7.1f} s wall {row['wall_s']:7.1f} s {mean:14} {memory}")
    for dtype, kind in ((dtype, kind) for dtype in DTYPES for kind in ("early", "full")):
        files = [_importance_file(options.rows, f"{engine}-{kind}", dtype) for engine in ("transformers", "sglang")]
        if all(file.exists() for file in files):
            print(f"importance {dtype} {kind}: {_differences(*files)}")


def _differences(first: Path, second: Path) -> str:
    """Of a fresh prompt, then of its continuation."""
    with np.load(first) as ours, np.load(second) as theirs:
        return ", ".join(f"{np.abs(ours[name] - theirs[name]).max():.2e} of {ours[name].max():.2f}" for name in ours)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "arm", "table"))
    parser.add_argument("--model")
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--arms", type=lambda text: text.split(","))
    parser.add_argument("--arm", choices=ARMS)
    parser.add_argument("--measures", type=lambda text: text.split(","))
    parser.add_argument("--dtype", default="bfloat16", choices=sorted(DTYPES))
    parser.add_argument("--chunk-tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=1)
    return parser


def main() -> int:
    options = _parser().parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    if options.command == "arm":
        asyncio.run(run_arm(options))
    else:
        (run_arms if options.command == "run" else print_table)(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
