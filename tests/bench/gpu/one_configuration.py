"""One configuration in one process: starts its engine, runs the checks or the timings, writes the result as it grows.

`run.py` starts it. With `--describe` it prints one line of JSON: the GPUs, and the versions of torch and SGLang.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
BENCH = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(BENCH), str(BENCH.parent / "reference")]

from gpu.configurations import Configuration  # noqa: E402
from gpu.results import FAILED, PASSED, REFUSED, RUNNING, Result, write  # noqa: E402


def main() -> int:
    options = _parser().parse_args()
    if options.describe:
        print(json.dumps(_described()))
        return 0
    chosen, machine = Configuration(**json.loads(options.configuration)), json.loads(options.machine)
    report = Report(options.out, {"name": chosen.name, "machine": machine, "status": RUNNING, "checks": {}})
    report.write()
    try:
        asyncio.run(_run(chosen, machine["rehearse"], report))
    except Exception as error:
        traceback.print_exc()
        report.end(FAILED, f"{type(error).__name__}: {error}")
    return 0


class Report:
    """The result of this process, in its file at every step."""

    def __init__(self, path: Path, result: Result) -> None:
        self.result = result
        self._path, self._started_s = path, time.monotonic()

    def write(self) -> None:
        self.result["seconds"] = round(time.monotonic() - self._started_s, 1)
        write(self._path, self.result)

    def add(self, name: str, holds: bool, figures: dict[str, Any]) -> None:
        self.result["checks"][name] = {"holds": holds, "figures": figures}
        self.write()

    def end(self, status: str, reason: str = "") -> None:
        self.result |= {"status": status, "reason": reason}
        self.write()


def _described() -> dict[str, Any]:
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    name = torch.cuda.get_device_name() if gpus else None
    return {"gpu": name, "gpus": gpus, "torch": torch.__version__, "sglang": version("sglang")}


async def _run(chosen: Configuration, rehearse: bool, report: Report) -> None:
    from gpu import checks, timings
    from gpu.engines import RefusedArguments, started

    if rehearse:
        report.result["ran_on"] = "rehearsed on torch_native"
    try:
        async with started(chosen, rehearse) as engine:
            report.write()
            report.result["start_s"] = report.result["seconds"]
            if reason := next(iter(engine.info.unsupported.values()), ""):
                _refused(chosen, reason, await checks.full_is_served(engine), report)
            elif chosen.shape:
                await timings.measure(engine, chosen.lengths, rehearse, report)
            else:
                await checks.run(engine, rehearse, report)
    except RefusedArguments as error:
        report.end(REFUSED, f"by SGLang: {error}")
    if report.result["status"] == RUNNING:
        holds = all(check["holds"] for check in report.result["checks"].values())
        report.end(PASSED if holds else FAILED)


def _refused(chosen: Configuration, reason: str, full_is_served: bool, report: Report) -> None:
    """KV is not dropped: a result where that is expected, and a failure elsewhere, also of the self-check."""
    if not full_is_served:
        report.end(FAILED, f"refused ({reason}), and route full is not served either")
    elif chosen.refusal and chosen.refusal in reason:
        report.end(REFUSED, reason)
    else:
        report.end(FAILED, f"refused, which was not expected: {reason}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--describe", action="store_true")
    parser.add_argument("--configuration", help="its fields, as JSON")
    parser.add_argument("--out", type=Path, help="file of the result")
    parser.add_argument("--machine", help="what the result depends on, as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
