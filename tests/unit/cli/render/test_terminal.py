"""An explanation in the terminal."""

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from presift.cli.render.terminal import show, text_of
from presift_client import RouteForecast

ROUTES = (
    RouteForecast("full", False, "needs [b]4 ms[/b] of 3", ttft_ms=4.0, read_tokens=1234),
    RouteForecast("spec_pc", True, is_chosen=True, ttft_ms=2.0, read_tokens=5),
)


def console(**options):
    return Console(**{"file": io.StringIO(), "width": 60} | options)


def shown(explanation, **options):
    into = console(**options)
    show(explanation, into)
    return into.file.getvalue()


@pytest.fixture
def mixed(explained):
    return explained(["keep ", "drop ", "drop2 ", "must"], [1, 0, 0, 1], [3], [0.9, 0.05, 0.05, 0.0])


def test_without_colours_dropped_text_is_marked(mixed):
    out = shown(mixed)
    assert "[-" in shown(mixed, force_terminal=True, color_system="truecolor", no_color=True)
    assert "\x1b" not in out and "keep [-drop drop2 -]must\n" in out and "[-dropped-]" in out


def test_kept_is_bold_dropped_is_dim_and_importance_has_a_background(mixed):
    text = text_of(mixed, plain=False)
    styles = {text.plain[span.start : span.end]: span.style for span in text.spans}
    assert styles["keep "].startswith("bold") and " on rgb(180,70,0)" in styles["keep "]
    assert styles["drop drop2 "] == "dim" and styles["must"] == "bold underline"
    assert text.plain == mixed.text


def test_text_that_some_heads_keep_is_neither_bold_nor_dim(explained):
    kv = np.array([[[1, 1, 0], [1, 0, 0]]], dtype=bool)
    text = text_of(explained(["a", "b", "c"], kv=kv, importance=[0.0, 0.0, 0.0]), plain=False)
    assert [str(span.style) for span in text.spans] == ["bold", "dim"]


def test_decision_strips_and_coverage_come_first(explained):
    kv = np.ones((3, 2, 4), dtype=bool)
    kv[:, :, 1] = False
    lines = shown(explained(list("abcd"), kv=kv), force_terminal=True, color_system="truecolor").splitlines()
    assert "spec_kv: requested" in lines[0] and "3 layers, 2 KV heads; 1 tokens are dropped everywhere" in lines[1]
    assert "coverage in the target 0.75" in lines[2]
    assert "importance" in lines[3] and "████" in lines[3] and "█ ██" in lines[4]


def test_the_prompt_cannot_control_the_terminal(explained):
    out = shown(explained(["\x1b]0;title\x07", "[bold]x[/bold]", "[/]"]), force_terminal=True, color_system=None)
    assert "\x1b]" not in out and "\x07" not in out
    assert "␛]0;title␇[bold]x[/bold][/]" in out


@pytest.mark.parametrize("width", [40, 80, 300])
def test_strips_fit_the_width(explained, width):
    into = Console(file=io.StringIO(), width=width)
    show(explained(["x"] * 500), into)
    strip = into.file.getvalue().splitlines()[1]
    assert len(strip) <= min(width, 111) and strip.startswith("importance ")


def test_routes_are_a_table_and_their_reasons_no_markup(explained):
    out = shown(replace(explained(["a"]), routes=ROUTES), width=120)
    rows = {line.removeprefix("->").split()[0]: line for line in out.splitlines() if line.strip()}
    full, pc = rows["full"], rows["spec_pc"]
    assert "1,234" in full and "[b]4 ms[/b]" in full and "->" not in full
    assert "->" in pc and "met" in pc
