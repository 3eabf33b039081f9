"""An explanation as one page of HTML that needs nothing else: no script, no font, no address. All text is escaped."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

import jinja2

from presift.cli.render import forecasts, strips
from presift.cli.render.heat import HEAT_LEVELS, HOLD_LEVELS, pieces, printable
from presift_client import Decision, Explanation, KvMask, Model

# More than a screen has pixels for would only make the page heavy.
_BINS = 1200
_TICKS = 4


@dataclass(frozen=True, slots=True)
class Fact:
    """A word and what it is here."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's name, and the strip of each of its KV heads as a data URI."""

    name: str
    heads: list[str]


def page_of(explanation: Explanation) -> str:
    """The page."""
    decision, shares = explanation.decision, strips.kept_share(explanation)
    importance, tokens = strips.importance(explanation), int(shares.size)
    return _template().render(
        decision=decision,
        detail=printable(decision.detail),
        facts=facts(explanation),
        heads=forecasts.HEADS,
        routes=[(route.is_chosen, forecasts.cells(route)) for route in explanation.routes],
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
    """The decision as a table."""
    decision = explanation.decision
    wholly = sum(span.tokens for span in explanation.spans if not span.kept)
    given = {
        "prompt tokens": f"{decision.prompt_tokens:,}",
        "tokens read": f"{decision.kept_tokens:,}",
        "KV tokens held": f"{decision.kv_tokens:,}",
        "tokens dropped wholly": f"{wholly:,}",
        "protected tokens": f"{decision.protected_tokens:,}",
        "coverage (draft)": _share(decision.coverage),
        "coverage (target)": _share(explanation.target_coverage),
        "KV pairs per head": "" if decision.kv_capacity is None else f"{decision.kv_capacity:,}",
        "KV chosen by": decision.kv_selection,
        "draft": _model(decision.draft),
        "target": _model(decision.target),
        "times": _times(decision),
    }
    return [Fact(name, printable(value)) for name, value in given.items() if value]


def layers(mask: KvMask) -> list[Layer]:
    """The strips of a KV mask, layer by layer."""
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
    return f"tokenise {decision.tokenize_ms:,.0f} ms{drafted}"


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = resources.files("presift.cli.render").joinpath("page.html").read_text(encoding="utf-8")
    return environment.from_string(source)
