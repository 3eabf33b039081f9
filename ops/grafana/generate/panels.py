"""The kinds of panels in presift's dashboards, made with Grafana's own builders.

This module has units, colours and sizes, but no metrics. `about` describes what a panel shows and when to worry.
"""

from __future__ import annotations

from dataclasses import dataclass

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.models import common as style
from grafana_foundation_sdk.models.dashboard import (
    DataSourceRef,
    DynamicConfigValue,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
SECONDS, SHARE, PER_SECOND, NUMBER, TOKENS, TOKENS_PER_SECOND, BYTES, TIMES = (
    "s",
    "percentunit",
    "reqps",
    "short",
    "short",
    "si:tok/s",
    "bytes",
    "suffix:x",
)
GREEN, YELLOW, RED, BLUE = "green", "#EAB839", "red", "#5794F2"
# Label -> colours of its values, wherever it names the lines. Other values get the next colour of the palette.
COLOURS = {
    "presift_route": {"full": "#8AB8FF", "spec_pc": "#73BF69", "spec_kv": "#FF9830", "spec_kv_pc": "#B877D9"},
    "presift_fate": {"kept": BLUE, "held": BLUE, "dropped": GREEN},
    "presift_outcome": {
        "hit": GREEN,
        "miss": YELLOW,
        "timeout": "#FF780A",
        "error": RED,
        "corrupt": "dark-red",
        "skipped": "orange",
    },
    # The colours of lines that have a fixed name.
    "": {"all": "#9FA7B3", "none": "#9FA7B3", "free": "#464C54", "held": BLUE, "waiting": YELLOW, "may wait": RED},
    "presift_cache": {"hit": GREEN, "miss": YELLOW, "shared": BLUE, "not_used": "#8AB8FF"},
}


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL, and the names of its lines (`{{label}}` is a label's value)."""

    expr: str
    legend: str = ""


Panel = timeseries.Panel | stat.Panel | bargauge.Panel


def lines(
    title: str,
    about: str,
    unit: str,
    *queries: Query,
    width: int = 8,
    height: int = 8,
    stacked: bool = False,
    steps: bool = False,
    least: float | None = 0.0,
    most: float | None = None,
    soft_most: float | None = None,
    line_at: float | None = None,
) -> Panel:
    """Lines over time; `stacked` areas; `steps` for values that jump. A dashed red line at `line_at`. The axis ends at
    `most`, or at `soft_most` unless a value is above."""
    panel = (
        timeseries.Panel()
        .line_width(1)
        .fill_opacity(45 if stacked else 8)
        .show_points(style.VisibilityMode.NEVER)
        .span_nulls(60_000)
        .legend(common.VizLegendOptions().display_mode(style.LegendDisplayMode.LIST).placement(style.LegendPlacement.BOTTOM).show_legend(True))
        .tooltip(common.VizTooltipOptions().mode(style.TooltipDisplayMode.MULTI).sort(style.SortOrder.DESCENDING))
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC))
        .line_interpolation(style.LineInterpolation.STEP_AFTER if steps else style.LineInterpolation.LINEAR)
    )  # fmt: skip
    if stacked:
        panel.stacking(common.StackingConfig().mode(style.StackingMode.NORMAL).group("A"))
    if least is not None:
        panel.min(least)
    if most is not None:
        panel.max(most)
    if line_at is not None:
        dashed = common.GraphThresholdsStyleConfig().mode(style.GraphThresholdsStyleMode.DASHED)
        panel.thresholds(_thresholds((line_at, RED), base="transparent")).thresholds_style(dashed)
    if soft_most is not None:
        panel.axis_soft_max(soft_most)
    named = {query.legend for query in queries}
    for name, colour in COLOURS.get(queries[0].legend.strip("{}"), {}).items():
        panel.override_by_name(name, [_colour(colour)])
    for name in sorted(named & set(COLOURS[""])):
        panel.override_by_name(name, [_colour(COLOURS[""][name])])
    return _finished(panel, queries, title=title, about=about, unit=unit, width=width, height=height)


def number(title: str, about: str, unit: str, *queries: Query, width: int = 4, height: int = 4,
           worry: tuple[tuple[float, str], ...] = (), base: str = BLUE, decimals: int | None = None,
           sparkline: bool = True) -> Panel:  # fmt: skip
    """The current number in large type over its history; `worry` has colours and the values at which they start."""
    is_many = "{{" in queries[0].legend
    panel = (
        stat.Panel()
        .graph_mode(style.BigValueGraphMode.AREA if sparkline else style.BigValueGraphMode.NONE)
        .color_mode(style.BigValueColorMode.VALUE)
        .text_mode(style.BigValueTextMode.VALUE_AND_NAME if is_many else style.BigValueTextMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .text(common.VizTextDisplayOptions().value_size(30))
        .thresholds(_thresholds(*worry, base=base))
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.THRESHOLDS))
        .no_value("none yet")
    )
    if decimals is not None:
        panel.decimals(decimals)
    return _finished(panel, queries, title=title, about=about, unit=unit, width=width, height=height)


def gauges(title: str, about: str, unit: str, *queries: Query, width: int = 8, height: int = 8, least: float = 0.0,
           most: float | None = None, worry: tuple[tuple[float, str], ...] = (), base: str = BLUE) -> Panel:  # fmt: skip
    """One bar for each current value."""
    panel = (
        bargauge.Panel()
        .display_mode(style.BarGaugeDisplayMode.BASIC)
        .orientation(style.VizOrientation.HORIZONTAL)
        .show_unfilled(True)
        .value_mode(style.BarGaugeValueMode.COLOR)
        .text(common.VizTextDisplayOptions().title_size(14).value_size(18))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .thresholds(_thresholds(*worry, base=base))
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.THRESHOLDS))
        .min(least)
        .no_value("none yet")
    )
    if most is not None:
        panel.max(most)
    return _finished(panel, queries, title=title, about=about, unit=unit, width=width, height=height)


def _finished(
    panel: Panel, queries: tuple[Query, ...], *, title: str, about: str, unit: str, width: int, height: int
) -> Panel:
    panel.title(title).description(about).unit(unit).datasource(SOURCE).span(width).height(height)
    for letter, query in zip("ABCDEFGH", queries, strict=False):
        target = prometheus.Dataquery().ref_id(letter).expr(query.expr).legend_format(query.legend or title)
        # Only time series show exemplars, and recorded series have none.
        target.exemplar(isinstance(panel, timeseries.Panel) and "_bucket" in query.expr)
        panel.with_target(target.datasource(SOURCE).format(PromQueryFormat.TIME_SERIES).range())
    return panel


def _thresholds(*steps: tuple[float, str], base: str) -> dashboard.ThresholdsConfig:
    if base == RED:  # low values are bad; without a value it is grey
        base, steps = "text", ((0, RED), *steps)
    all_steps = [Threshold(value=None, color=base), *(Threshold(value=at, color=colour) for at, colour in steps)]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(all_steps)


def _colour(colour: str) -> DynamicConfigValue:
    return DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour})
