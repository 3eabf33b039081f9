"""Generate ops/grafana/dashboards/*.json; with --check print which are stale, and fail if any is.

`make dashboards` runs it with a Python that has grafana-foundation-sdk. Grafana's own builders guarantee its schema.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import quality
import savings
import serving
import where_time_goes
from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
)
from panels import SOURCE, Panel

FOLDER = Path(__file__).parents[1] / "dashboards"
# In the order of an operator's questions.
PAGES = {"serving": serving, "savings": savings, "quality": quality, "where-time-goes": where_time_goes}


def written(name: str, title: str, about: str, rows: Iterable[tuple[str, Iterable[Panel]]]) -> str:
    """One dashboard as JSON; sorted keys keep diffs small."""
    page = (
        dashboard.Dashboard(title)
        .uid(f"presift-{name}")
        .description(about)
        .tags(["presift"])
        .readonly()
        .timezone("browser")
        .refresh("30s")
        .time("now-1h", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .annotation(_alerts())
        .link(dashboard.DashboardLink("presift").type(DashboardLinkType.DASHBOARDS).tags(["presift"]).keep_time(True))
    )
    for row, panels in rows:
        page.with_row(dashboard.Row(row))
        for panel in panels:
            page.with_panel(panel)
    built = page.build()
    for number, panel in enumerate(built.panels or [], start=1):
        panel.id_val = number
    return JSONEncoder(sort_keys=True, indent=2).encode(built) + "\n"


def _alerts() -> dashboard.AnnotationQuery:
    """Red marks at the times when an alert starts to fire."""
    return (
        dashboard.AnnotationQuery()
        .name("Alerts")
        .datasource(SOURCE)
        .enable(True)
        .icon_color("red")
        .expr('ALERTS{alertname=~"Presift.+", alertstate="firing"}')
    )


def main(check: bool) -> int:
    FOLDER.mkdir(exist_ok=True)
    stale = []
    for name, page in PAGES.items():
        path, text = FOLDER / f"{name}.json", written(name, page.TITLE, page.ABOUT, page.rows())
        if not path.exists() or path.read_text() != text:
            stale.append(path.name)
            if not check:
                path.write_text(text)
    if check and stale:
        print(f"ops/grafana/dashboards: {', '.join(stale)} stale: run make dashboards")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main(check=sys.argv[1:] == ["--check"]))
