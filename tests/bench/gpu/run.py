"""Every check that needs a GPU, in one command. See README.md beside this file.

    python tests/bench/gpu/run.py
    python tests/bench/gpu/run.py --rehearse

Each configuration runs in its own process, within a time limit, and leaves a JSON file. Another call continues: it runs
the configurations that have no result. Prints one table of all results; fails if any check does.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from gpu.configurations import Configuration, configurations, timings  # noqa: E402
from gpu.processes import Ending, Job, run  # noqa: E402
from gpu.results import NOT_RUN, REFUSED, Store, is_failed, table  # noqa: E402

CHILD = HERE / "one_configuration.py"
RESULTS = HERE.parent / "results"
# On an H200, less than eight minutes with what comes before and after.
BUDGET_S = 460.0
# How many times longer a rehearsal may take.
_REHEARSAL = 6.0


def main(arguments: Sequence[str] | None = None, child: Path = CHILD) -> int:
    options = _parser().parse_args(arguments)
    machine = _machine(options, child)
    if not options.rehearse and not machine["gpus"]:
        sys.exit(f"gpu checks: no GPU at hand (torch {machine['torch']} sees no CUDA device): nothing was checked")
    store = Store(options.results / ("gpu-rehearsal" if options.rehearse else "gpu"), machine)
    chosen = _chosen(options, machine)
    _forget(options, store)
    unable = {each.name: why for each in chosen if (why := _why_not(each, machine))}
    missing = [each for each in chosen if each.name not in unable and not store.is_done(each.name)]
    try:
        run(
            [_job(each, options, store, child) for each in missing],
            options.budget_s or _scaled(BUDGET_S, options),
            options.at_once or (1 if options.rehearse else 3),
            lambda ending: _report(ending, store),
        )
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    print(table(chosen, store, unable))
    found = [result for each in chosen if (result := store.read(each.name)) is not None]
    # If SGLang takes no configuration at all, nothing was checked.
    return int(any(map(is_failed, found)) or (len(found) > 1 and all(each["status"] == REFUSED for each in found)))


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _machine(options: argparse.Namespace, child: Path) -> dict[str, Any]:
    """What results depend on. Another process asks torch, because it would hold memory of the GPU from then on."""
    described = subprocess.run([sys.executable, child, "--describe"], check=False, capture_output=True, text=True)
    if described.returncode:
        sys.exit(f"gpu checks: SGLang cannot be imported: {described.stderr.strip()[-500:]}")
    return json.loads(described.stdout.strip().split("\n")[-1]) | {"rehearse": options.rehearse}


def _chosen(options: argparse.Namespace, machine: dict[str, Any]) -> list[Configuration]:
    every = configurations(timings(options.shape, gpus=machine["gpus"], long=options.long))
    names = [each.name for each in every]
    if unknown := [name for name in options.only if name not in names]:
        sys.exit(f"gpu checks: --only {','.join(unknown)}: no such configuration; there are {', '.join(names)}")
    return [each for each in every if not options.only or each.name in options.only]


def _forget(options: argparse.Namespace, store: Store) -> None:
    """Delete the results that are to be made anew."""
    if options.fresh:
        shutil.rmtree(store.folder, ignore_errors=True)
    store.folder.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        store.path(name).unlink(missing_ok=True)


def _why_not(each: Configuration, machine: dict[str, Any]) -> str:
    """Why a configuration cannot run on this machine; empty if it can."""
    lacks_gpus = not machine["rehearse"] and each.tensor_parallel > machine["gpus"]
    return f"needs {each.tensor_parallel} GPUs" if lacks_gpus else ""


def _job(each: Configuration, options: argparse.Namespace, store: Store, child: Path) -> Job:
    command = [sys.executable, str(child), "--configuration", json.dumps(asdict(each))]
    command += ["--out", str(store.path(each.name)), "--machine", json.dumps(store.machine)]
    return Job(each.name, command, store.log(each.name), _scaled(each.limit_s, options), each.runs_alone)


def _scaled(seconds: float, options: argparse.Namespace) -> float:
    return seconds * (_REHEARSAL if options.rehearse else 1)


def _report(ending: Ending, store: Store) -> None:
    """One line for a configuration that has ended. What ended before its result was complete has failed, unless the
    budget ended it: then the next call runs it again."""
    name, done = ending.job.name, store.is_done(ending.job.name)
    if not done and not ending.is_out_of_budget:
        limit = f"ended at its limit of {ending.job.limit_s:.0f} s"
        why = limit if ending.code is None else f"the process ended with status {ending.code}"
        store.fail(name, f"{why}; the last line of {store.log(name)}: {store.last_words(name)}")
    result = store.read(name)
    status = result["status"] if result and store.is_done(name) else NOT_RUN
    print(f"{ending.seconds:6.0f} s  {name}: {status}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="on a CPU: small, all on SGLang's torch_native backend")
    parser.add_argument("--shape", choices=("8b", "70b"), default="8b", help="the Llama whose sizes are timed")
    parser.add_argument("--long", action="store_true", help="time prompts of 128k tokens too")
    parser.add_argument(
        "--only", type=lambda text: text.split(","), default=[], help="names, comma-separated; run anew"
    )
    parser.add_argument("--fresh", action="store_true", help="delete earlier results first")
    parser.add_argument("--budget-s", type=float, help=f"seconds for all of it; {BUDGET_S:.0f} on a GPU")
    parser.add_argument("--at-once", type=int, help="configurations at once, but for those that are timed; 3 on a GPU")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(main())
