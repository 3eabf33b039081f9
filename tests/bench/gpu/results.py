"""The results: a JSON file for each configuration, and one table of all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu.configurations import Configuration

# States of a result. The others than RUNNING are final.
RUNNING, PASSED, FAILED, REFUSED = "running", "passed", "failed", "refused"
NOT_RUN = "not run"
CHECKS = ("keep-all", "selection", "dropping", "reuse", "renewal", "ledger", "sampling")
_SHORT = {True: "ok", False: "FAIL"}

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Store:
    """The results in `folder` that were made on `machine`, with what they depend on. Others count as not made."""

    folder: Path
    machine: dict[str, Any]

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def read(self, name: str) -> Result | None:
        """The result of a configuration, finished or not; None if there is none."""
        try:
            result = json.loads(self.path(name).read_text())
        except (OSError, ValueError):
            return None
        return result if isinstance(result, dict) and result.get("machine") == self.machine else None

    def is_done(self, name: str) -> bool:
        result = self.read(name)
        return result is not None and result["status"] != RUNNING

    def fail(self, name: str, reason: str) -> Result:
        """Record that a configuration ended before its result was complete. The checks so far are kept."""
        result = self.read(name) or {"name": name, "machine": self.machine}
        result |= {"status": FAILED, "reason": reason}
        write(self.path(name), result)
        return result

    def last_words(self, name: str) -> str:
        """The last line of a configuration's log."""
        lines = self.log(name).read_text(errors="replace").split("\n") if self.log(name).exists() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "no output")[-200:]


def write(path: Path, result: Result) -> None:
    """Replace the file, so that it is complete whenever it is read."""
    beside = path.with_suffix(f".{os.getpid()}.tmp")
    beside.write_text(json.dumps(result, indent=1) + "\n")
    beside.replace(path)


def is_failed(result: Result | None) -> bool:
    """Whether the configuration failed, or one of its checks has so far."""
    if result is None:
        return False
    return result["status"] == FAILED or any(not check["holds"] for check in result.get("checks", {}).values())


def table(chosen: Sequence[Configuration], store: Store, unable: Mapping[str, str]) -> str:
    """What is known of the `chosen` configurations: checks, times, and what did not run. `unable`: why some cannot."""
    results = {each.name: store.read(each.name) for each in chosen}
    checked = [each for each in chosen if not each.shape]
    timed = [each for each in chosen if each.shape]
    lines = [*_checks(checked, results), "", *_timings(timed, results)]
    failed = [name for name, result in results.items() if is_failed(result)]
    done = {name: result["status"] for name, result in results.items() if result and result["status"] != RUNNING}
    lines += ["", f"{len(done)} of {len(chosen)} configurations have run: " + _counts(done.values())]
    for name in failed:
        lines += [f"FAIL {name}: {why}" for why in _failures(results[name] or {})]
    lines += [f"not run: {name}: {why}" for name, why in unable.items()]
    if missing := [name for name in results if name not in done and name not in unable]:
        lines.append(f"not run yet: {', '.join(missing)} (the same command continues)")
    return "\n".join(lines)


def _checks(chosen: Sequence[Configuration], results: dict[str, Result | None]) -> Iterable[str]:
    if not chosen:
        return
    width, options = max(len(each.name) for each in chosen), max(len(each.summary) for each in chosen)
    yield f"{'':{width}}  {'':{options}}  {'result':8}" + "".join(f"{name:>10}" for name in (*CHECKS, "seconds"))
    for each in chosen:
        result = results[each.name] or {}
        status = result.get("status", NOT_RUN)
        cells = [_cell(result.get("checks", {}).get(name)) for name in CHECKS]
        cells.append(f"{result['seconds']:.0f}" if "seconds" in result else "")
        note = f"  {result['reason']}" if status == REFUSED else f"  ({ran})" if (ran := result.get("ran_on")) else ""
        shown = NOT_RUN if status == RUNNING else status
        yield f"{each.name:{width}}  {each.summary:{options}}  {shown:8}" + "".join(f"{c:>10}" for c in cells) + note


def _cell(check: Result | None) -> str:
    return "-" if check is None else _SHORT[bool(check["holds"])]


def _timings(chosen: Sequence[Configuration], results: dict[str, Result | None]) -> Iterable[str]:
    for each in chosen:
        result = results[each.name]
        if result is None:
            continue
        yield f"{each.name}: {result.get('ran_on', '') or each.summary}"
        if result.get("reason"):
            yield f"  {result['reason']}"
        names = ("first token s", "of full", "batch", "tokens/s", "of full", "KV held", "renewals", "skipped")
        yield f"{'prompt':>8}  {'':10}" + "".join(f"{name:>15}" for name in names)
        for row in result.get("timings", []):
            if "reason" in row:
                yield f"{row['tokens']:8}  not measured: {row['reason']}"
            for side, first in row.get("first_token_s", {}).items():
                begin = f"{row['tokens']:8}  {side:10}{first:15.3f}{first / row['first_token_s']['full']:15.2f}"
                for batch in row["decode"]:
                    yield begin + _decode_cells(batch, side)
                    begin = " " * len(begin)


def _decode_cells(batch: Result, side: str) -> str:
    found, rate = batch[side], batch[side]["tokens_per_s"]
    counts = "".join(f"{found[name]:15}" for name in ("kv_tokens", "renewals", "skipped"))
    return f"{batch['batch']:15}{rate:15.1f}{rate / batch['full']['tokens_per_s']:15.2f}{counts}"


def _failures(result: Result) -> Iterable[str]:
    if result.get("reason"):
        yield result["reason"]
    for name, check in result.get("checks", {}).items():
        if not check["holds"]:
            yield f"{name} {json.dumps(check['figures'])}"


def _counts(states: Iterable[str]) -> str:
    states = list(states)
    return ", ".join(f"{states.count(name)} {name}" for name in (PASSED, REFUSED, FAILED))
