"""Tables and plot of `auto_trace`: AUTO against fixed routes and against the best choice in hindsight; predictions.

In hindsight, for each request: of the fixed routes' runs those that met the request's limits with what they really
read, held and took; of these the least lossy, or `full` where that was the soonest. `soonest` takes the soonest.
"""

from __future__ import annotations

import statistics
from typing import Any

Row = dict[str, Any]
ROUTES = ("full", "spec_kv", "spec_kv_pc", "spec_pc")
MODES = (*ROUTES, "auto")


def report(found: dict[str, list[Row]], default: dict[str, int]) -> str:
    """Markdown."""
    parts = []
    if all(mode in found for mode in MODES):
        parts.append(_comparison(found, default))
    parts += [_predictions(mode, found[mode]) for mode in ("auto", "mixed") if mode in found]
    return "\n\n".join(parts)


def hindsight(found: dict[str, list[Row]], default: dict[str, int]) -> tuple[list[Row], list[Row]]:
    """The best row of each request, by the rule and by time alone."""
    best, soonest = [], []
    for rows in zip(*(found[route] for route in ROUTES), strict=True):
        answered = [row for row in rows if "error" not in row]
        within = [row for row in answered if not broken(row, default)] or answered
        first = min(within, key=lambda row: row["ttft_ms"])
        soonest.append(first)
        whole_is_soonest = rows[0] in answered and rows[0]["ttft_ms"] <= min(row["ttft_ms"] for row in answered)
        whole_may_be = rows[0] in answered and not _limits_broken(rows[0], rows[0]["budget"])
        best.append(rows[0] if whole_is_soonest and whole_may_be else within[0])
    return best, soonest


def broken(row: Row, default: dict[str, int]) -> list[str]:
    """The limits that this answer did not keep; the default capacity where the caller set none."""
    if row["route"] == "full" and row["reason"] in ("below_threshold", "cheapest") and not row["budget"]:
        return []
    return _limits_broken(row, row["budget"] or default)


def _limits_broken(row: Row, limits: dict[str, int]) -> list[str]:
    if row.get("reason") == "below_threshold":
        limits = {name: limit for name, limit in limits.items() if name == "max_ttft_ms"}
    costs = {"max_prompt_tokens": "kept_tokens", "max_kv_tokens": "kv_tokens", "max_ttft_ms": "ttft_ms"}
    return [name for name, limit in limits.items() if row[costs[name]] > limit]


def _comparison(found: dict[str, list[Row]], default: dict[str, int]) -> str:
    best, soonest = hindsight(found, default)
    named = {**{mode: found[mode] for mode in MODES}, "best in hindsight": best, "soonest in hindsight": soonest}
    lines = [
        "| requests | mean TTFT s | median | p95 | answered in full | caller's limits broken | of these could be kept |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for name, rows in named.items():
        took = sorted(row["ttft_ms"] / 1000 for row in rows if "error" not in row)
        over = [bool(_limits_broken(row, row["budget"])) for row in rows]
        could = [
            any(not _limits_broken(found[route][n], found[route][n]["budget"]) for route in ROUTES)
            for n in range(len(rows))
        ]
        full = sum(row.get("route") == "full" for row in rows)
        avoidable = sum(a and b for a, b in zip(over, could, strict=True))
        p95 = took[int(0.95 * len(took))]
        lines.append(
            f"| {name} | {statistics.mean(took):.2f} | {statistics.median(took):.2f} | {p95:.2f} "
            f"| {full} | {sum(over)} | {avoidable} |"
        )
    mean = {name: statistics.mean(row["ttft_ms"] for row in rows if "error" not in row) for name, rows in named.items()}
    lines.append(f"\nAUTO / best in hindsight: {mean['auto'] / mean['best in hindsight']:.3f}")
    return "\n".join(lines)


def _predictions(mode: str, rows: list[Row]) -> str:
    """Relative errors; a request is predicted before it is learnt from, so all are held out."""
    rows = [row for row in rows if "error" not in row]
    lines = [
        f"| predicted, {mode} | requests | median error | p90 | median of the second half |",
        "|---|---|---|---|---|",
    ]
    for route in ("all", *ROUTES):
        errors = [_error(row) for row in rows if route in ("all", row["route"])]
        if errors:
            late = errors[len(errors) // 2 :]
            p90 = sorted(errors)[int(0.9 * len(errors))]
            middle = statistics.median(errors)
            lines.append(f"| {route} | {len(errors)} | {middle:.0%} | {p90:.0%} | {statistics.median(late):.0%} |")
    return "\n".join(lines)


def _error(row: Row) -> float:
    return abs(row["predicted_ttft_ms"] - row["ttft_ms"]) / row["ttft_ms"]


def plot(found: dict[str, list[Row]], default: dict[str, int], path: str) -> None:
    """Mean TTFT by mode, and AUTO against the best in hindsight, request by request. Needs matplotlib."""
    from matplotlib import pyplot

    best, soonest = hindsight(found, default)
    named = {**{mode: found[mode] for mode in MODES}, "best in\nhindsight": best, "soonest in\nhindsight": soonest}
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5))
    means = [statistics.mean(row["ttft_ms"] / 1000 for row in rows if "error" not in row) for rows in named.values()]
    axes[0].bar(list(named), means, color=["tab:orange" if name == "auto" else "tab:blue" for name in named])
    axes[0].set(ylabel="mean TTFT, s", title=f"{len(best)} requests")
    axes[0].tick_params(axis="x", rotation=30)
    for kind in sorted({row["kind"] for row in best}):
        pairs = [
            (b["ttft_ms"], a["ttft_ms"])
            for a, b in zip(found["auto"], best, strict=True)
            if a["kind"] == kind and "error" not in a
        ]
        axes[1].scatter([b for b, _ in pairs], [a for _, a in pairs], s=14, label=kind)
    limits = axes[1].get_xlim()
    axes[1].plot(limits, limits, color="grey", linewidth=0.8)
    axes[1].set(xscale="log", yscale="log", xlabel="best in hindsight, TTFT ms", ylabel="AUTO, TTFT ms")
    axes[1].legend()
    figure.tight_layout()
    figure.savefig(path)
