"""Table and plot of `capacity_curve`: coverage and accuracy by method and capacity, from the recorded answers."""

from __future__ import annotations

import statistics
from typing import Any

Rows = dict[str, dict[str, Any]]
METHODS = ("spec_pc", "spec_kv", "cross spec_pc", "cross spec_kv")
CAPACITIES = (128, 256, 512, 1024, 2048)
LENGTHS = {"all": (0, 10**9), "<= 2.3k": (0, 2300), "3-6k": (2300, 10**9)}


def table(answers: Rows, before: Rows, drafts: dict[str, Rows]) -> str:
    """Markdown: one line per method and capacity. A capacity that drops next to nothing counts as full."""
    lines = ["| method | C | " + " | ".join(LENGTHS) + " | coverage, mean |", "|" + "---|" * (len(LENGTHS) + 3)]
    cells = " | ".join(_share(_right("full", 0, answers, before, bounds)) for bounds in LENGTHS.values())
    lines.append(f"| full | | {cells} | |")
    for method in METHODS:
        for capacity in CAPACITIES:
            found = [_share(_right(method, capacity, answers, before, bounds)) for bounds in LENGTHS.values()]
            if found[0] != "-":
                mean = coverage(method, capacity, answers, before, drafts)
                lines.append(f"| {method} | {capacity} | {' | '.join(found)} | {mean:.2f} |")
    return "\n".join(lines)


def _right(method: str, capacity: int, answers: Rows, before: Rows, bounds: tuple[int, int]) -> list[bool]:
    """Of the questions that this method was asked, or that fit its capacity: whether the answer is right."""
    found = []
    for name, row in answers.items():
        if not bounds[0] <= row["prompt_tokens"] < bounds[1]:
            continue
        known = before[name]["answers"] | row["answers"]
        one = known.get("full" if capacity == 0 else f"{method} {capacity}")
        if one is None and capacity > 0.8 * row["prompt_tokens"] and "cross" not in method:
            one = known["full"]
        if one is not None:
            found.append(bool(one["right"]))
    return found


def _share(right: list[bool]) -> str:
    return f"{sum(right)}/{len(right)} ({sum(right) / len(right):.0%})" if right else "-"


def coverage(method: str, capacity: int, answers: Rows, before: Rows, drafts: dict[str, Rows]) -> float:
    """Mean coverage of what was asked: the draft's on spec_pc, the target's own on spec_kv."""
    prefix, _, route = method.rpartition(" ")
    found = []
    for name, row in answers.items():
        known = before[name]["answers"] | row["answers"]
        if f"{method} {capacity}" not in known:
            continue
        if route == "spec_pc":
            masks = drafts[f"{prefix} " if prefix else ""][name]["masks"]
            found.append(masks[f"spec_pc {capacity}"]["coverage"])
        elif (reported := known[f"{method} {capacity}"].get("coverage")) is not None:
            found.append(reported)
    return statistics.mean(found) if found else float("nan")


def plot(answers: Rows, before: Rows, drafts: dict[str, Rows], path: str) -> None:
    """Accuracy and coverage over capacity, one curve per method. Needs matplotlib."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharex=True)
    everything = LENGTHS["all"]
    for method in METHODS:
        asked = [size for size in CAPACITIES if _right(method, size, answers, before, everything)]
        right = [_right(method, size, answers, before, everything) for size in asked]
        axes[0].plot(asked, [sum(each) / len(each) for each in right], marker="o", label=method)
        axes[1].plot(asked, [coverage(method, size, answers, before, drafts) for size in asked], marker="o")
    full = _right("full", 0, answers, before, everything)
    axes[0].axhline(sum(full) / len(full), color="grey", linestyle=":", label="full")
    for axis, title in zip(axes, ("right answers", "coverage"), strict=True):
        axis.set(xscale="log", xlabel="capacity, tokens", title=title, ylim=(0.5, 1))
        axis.set_xticks(CAPACITIES, [str(size) for size in CAPACITIES])
        axis.tick_params(which="minor", bottom=False, labelbottom=False)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path)
