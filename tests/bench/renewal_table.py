"""The table of `renewal_quality`: by method and kind, how many of the facts that `full` states are stated."""

from __future__ import annotations

from typing import Any

from renewal_methods import FULL, Method

Row = dict[str, Any]

# Of what `full` states, for each kind with so many questions.
FLOOR = {"renew12/512": 0.97}
_ENOUGH = 10
_RIVAL = "draft24/512"


def table(rows: list[Row]) -> str:
    """Markdown, one line for each method. A share is of the facts that `full` states, over all questions of a kind.

    Stated: the number of facts stated, by `full` or not, against that of `full`: a target at its limit states other
    facts after any small change, which a share counts as a loss and this does not.
    Won and lost: questions with more and with fewer facts stated than by the other method, stated by `full` or not.
    Held: KV tokens of the prompt, the mean over the tokens of an answer.
    """
    by_method = _by_method(rows)
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    heads = ["method", *kinds, "all", "stated", "n", f"+/- {FULL}", f"+/- {_RIVAL}"]
    heads += ["held", "tokens", "renewals", "skipped"]
    lines = [heads, ["---"] * len(heads)]
    full = by_method.get(FULL, {})
    for name, found in by_method.items():
        pairs = [(row, full[question]) for question, row in found.items() if question in full]
        cells = [_percent(pairs, kind) for kind in (*kinds, None)]
        against = [_against(found, by_method.get(other, {})) if other != name else "" for other in (FULL, _RIVAL)]
        lines.append([name, *cells, _stated(pairs), str(len(pairs)), *against, *_means(list(found.values()))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def share(pairs: list[tuple[Row, Row]]) -> float | None:
    """Of the facts that `full` (the second of each pair) states, the share that the first states too."""
    wanted = sum(len(full["stated"]) for _, full in pairs)
    found = sum(len(set(row["stated"]) & set(full["stated"])) for row, full in pairs)
    return found / wanted if wanted else None


def floors(rows: list[Row]) -> list[str]:
    """What is below its floor, and rows that count for nothing because a renewal was skipped."""
    by_method, missed = _by_method(rows), list[str]()
    for name, floor in FLOOR.items():
        for kind in dict.fromkeys(row["kind"] for row in rows):
            pairs = _pairs(by_method, name, kind)
            found = share(pairs)
            if len(pairs) >= _ENOUGH and found is not None and found < floor:
                missed.append(f"{name}, {kind}: {found:.3f} of full on {len(pairs)} questions, floor {floor}")
    skipped = [f"{row['question']} {row['method']}" for row in rows if row["skipped"]]
    return missed + ([f"renewals were skipped: {', '.join(skipped)}"] if skipped else [])


def _by_method(rows: list[Row]) -> dict[str, dict[str, Row]]:
    names = sorted({row["method"] for row in rows}, key=lambda name: (name != FULL, Method.of(name).name))
    return {name: {row["question"]: row for row in rows if row["method"] == name} for name in names}


def _pairs(by_method: dict[str, dict[str, Row]], name: str, kind: str) -> list[tuple[Row, Row]]:
    full = by_method.get(FULL, {})
    return [
        (row, full[question])
        for question, row in by_method.get(name, {}).items()
        if row["kind"] == kind and question in full
    ]


def _percent(pairs: list[tuple[Row, Row]], kind: str | None) -> str:
    chosen = [pair for pair in pairs if kind in (None, pair[0]["kind"])]
    found = share(chosen)
    return "-" if found is None else f"{found:.0%} ({len(chosen)})"


def _stated(pairs: list[tuple[Row, Row]]) -> str:
    wanted = sum(len(full["stated"]) for _, full in pairs)
    return f"{sum(len(row['stated']) for row, _ in pairs) / wanted:.0%}" if wanted else "-"


def _against(found: dict[str, Row], other: dict[str, Row]) -> str:
    signs = [
        len(row["stated"]) - len(other[question]["stated"]) for question, row in found.items() if question in other
    ]
    return f"+{sum(sign > 0 for sign in signs)} -{sum(sign < 0 for sign in signs)}"


def _means(rows: list[Row]) -> list[str]:
    means = (f"{sum(row[name] for row in rows) / len(rows):,.0f}" for name in ("mean_held", "answer"))
    return [*means, str(sum(row["renewals"] for row in rows)), str(sum(row["skipped"] for row in rows))]
