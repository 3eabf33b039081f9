"""An explanation as one self-contained page of HTML: no scripts, fonts or external addresses. All text is escaped."""

from __future__ import annotations

from dataclasses import dataclass

from presift.cli.render import forecasts, strips
from presift.cli.render.heat import HEAT_LEVELS, HOLD_LEVELS, pieces, printable
from presift.cli.render.lines import renewal_parts
from presift.cli.render.templates import template
from presift_client import Decision, Explanation, KvMask, Model

# A screen has no pixels for more.
_BINS = 1200
_TICKS = 4


@dataclass(frozen=True, slots=True)
class Fact:
    """One entry of the page's list of facts."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's name, and one image for each of its KV heads, as data URIs."""

    name: str
    heads: list[str]


def page_of(explanation: Explanation) -> str:
    """The page, as HTML."""
    decision, shares = explanation.decision, strips.kept_share(explanation)
    importance, tokens = strips.importance(explanation), int(shares.size)
    return template("page.html").render(
        decision=decision,
        detail=printable(decision.detail),
        facts=facts(explanation),
        headings=forecasts.HEADINGS,
        routes=[(route.is_chosen, forecasts.table_row(route)) for route in explanation.routes],
        is_scored=bool(importance.any()),
        importance=strips.image(strips.scaled(strips.binned(importance, _BINS))),
        kept=strips.image(strips.scaled(strips.binned(shares, _BINS))),
        layers=[] if explanation.kv_mask is None else layers(explanation.kv_mask),
        mask=explanation.kv_mask,
        pieces=pieces(explanation),
        heat_levels=HEAT_LEVELS,
        hold_levels=HOLD_LEVELS,
        ticks=[tokens * tick // _TICKS for tick in range(_TICKS + 1)],
        bin_tokens=max(1, round(tokens / _BINS)),
    )


def facts(explanation: Explanation) -> list[Fact]:
    """The decision as names and values; empty values are left out."""
    decision = explanation.decision
    dropped = sum(span.tokens for span in explanation.spans if not span.kept)
    values = {
        "prompt tokens": f"{decision.prompt_tokens:,}",
        "prompt tokens read": f"{decision.kept_tokens:,}",
        "KV tokens held": f"{decision.kv_tokens:,}",
        "tokens fully dropped": f"{dropped:,}",
        "protected tokens": f"{decision.protected_tokens:,}",
        "coverage (draft)": _share(decision.coverage),
        "coverage (target)": _share(explanation.target_coverage),
        "KV tokens per head": "" if decision.kv_capacity is None else f"{decision.kv_capacity:,}",
        "KV selected by": ", ".join(filter(None, (decision.kv_selection, *renewal_parts(decision)))),
        "draft": _model(decision.draft),
        "target": _model(decision.target),
        "times": _times(decision),
    }
    return [Fact(name, printable(value)) for name, value in values.items() if value]


def layers(mask: KvMask) -> list[Layer]:
    """The strips of a KV mask, one layer after the other."""
    names = ["all"] if mask.layers == 1 else [str(number) for number in range(mask.layers)]
    return [
        Layer(name, [strips.image(strips.scaled(row)) for row in strips.binned(kept, _BINS)])
        for name, kept in zip(names, strips.layers_of(mask), strict=True)
    ]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _model(model: Model | None) -> str:
    return "" if model is None else f"{model.id} ({model.revision[:12]})"


def _times(decision: Decision) -> str:
    drafted = f", draft {decision.draft_ms:,.0f} ms" if decision.draft else ""
    return f"tokenisation {decision.tokenize_ms:,.0f} ms{drafted}"
