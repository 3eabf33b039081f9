"""A summary in the terminal, as JSON and as a page."""

import json
import re

import pytest
from rich.console import Console

from presift.cli.evaluation.page import page_of
from presift.cli.evaluation.report import as_json, interval, number, show
from presift.cli.evaluation.results import Failure
from presift.cli.evaluation.statistics import Estimate
from presift.cli.evaluation.summary import summarise
from presift.cli.render.templates import template

EVIL = "<script>alert(1)</script>\"' onmouseover=alert(1) {{ 7 * 7 }} {% raw %} </div></details> \x1b[31m\u202e"


@pytest.fixture
def lost(compared):
    return summarise(*compared(("yes", "yes"), ("yes", EVIL), ("no", "no")), 0)


def printed(summary, width=80):
    console = Console(width=width, record=True)
    with console.capture() as capture:
        show(summary, console)
    return capture.get()


def test_the_terminal_never_cuts_a_number(lost):
    narrow, wide = printed(lost, 30), printed(lost, 300)
    for text in (narrow, wide):
        assert re.search(r"spec_pc 512 +3 +33% \(\d+%-\d+%\) +50% \(\d+%-\d+%\) +0 +1 ", text)
        assert re.search(r"full +100 \(3\) +20 +1,000 +1,000 +100%", text)
        assert re.search(r"q1, spec_pc 512: lost, agreement 0.0\d, 250 of 1,000 tokens read, 250 held", text)
        assert "note: only 3 scored prompts" in text
    assert "\x1b" not in narrow and "\u202e" not in narrow


def test_columns_without_numbers_are_left_out(compared):
    text = printed(summarise(*compared(("a", "a"), expected=(), scorer=None), 0))
    heading = text.splitlines()[1]
    assert "agreement (95%)" in heading and not {"right", "won", "facts"} & set(heading.split())


def test_the_json_is_complete_and_valid(lost):
    found = json.loads(json.dumps(as_json(lost, {"target": "t"}), allow_nan=False))
    assert found["header"] == {"target": "t"} and found["missing"] == 0
    assert [row["arm"] for row in found["tables"][0]["rows"]] == ["full", "spec_pc 512"]
    losses = [(each["id"], each["arm"]) for each in found["answers"] if each["score"] != each["full_score"]]
    assert losses == [("q1", "spec_pc 512")] and len(found["answers"]) == 6
    assert found["answers"][3]["answer"]["text"] == EVIL and 0 <= found["answers"][3]["agreement"]["degree"] < 1


def test_answers_of_other_routes_and_errors_are_in_the_json(compared):
    pairs = [("yes", "yes")] * 3 + [("yes", Failure("InvalidRequest", "too small"))]
    found = as_json(summarise(*compared(*pairs, route="full", reason="within_budget"), 0), {})
    row = json.loads(json.dumps(found))["tables"][0]["rows"][1]
    assert row["instead"] == {"full (within_budget)": 3} and row["failed"] == {"too small": 1}
    assert found["answers"][-1]["error"] == {"kind": "InvalidRequest", "message": "too small", "again": False}


def test_the_page_escapes_everything(lost, explained):
    tokens = [EVIL, " why?"]
    case = {0: explained(tokens, kept=[False, True])}
    page = page_of(lost, {"target": EVIL}, case)
    assert "<script" not in page and "<details>" in page and page.count("</details>") == 1 == len(lost.cases)
    assert page.count("&lt;script&gt;") == 3 and "{{ 7 * 7 }}" in page  # header, answer, prompt
    assert "\x1b" not in page and "\u202e" not in page
    assert not re.search(r"(?:src|href|url)\s*[=(]", page)


def test_the_page_shows_what_was_kept(lost, explained):
    page = page_of(lost, {}, {0: explained(["dropped", "kept"], kept=[False, True], importance=[0.9, 0.1])})
    assert re.search(r'class="h\d k0"[^>]*>dropped<', page) and re.search(r'class="h\d k4"[^>]*>kept<', page)
    assert "importance <i" in page and "kept in some heads" not in page


def test_the_page_says_why_there_is_no_explanation(lost):
    page = page_of(lost, {}, {0: "no explanation: the draft is gone"})
    assert "<p>no explanation: the draft is gone</p>" in page and "translate" in page and "legend" in page


def test_the_page_has_the_numbers_of_the_terminal(lost):
    page, text = page_of(lost, {}, {}), printed(lost, 300)
    cells = re.findall(r"<td[^>]*>([^<]+)</td>", page)
    assert cells and all(cell in text for cell in cells)
    assert all(note.partition(":")[0] in page for note in lost.notes)


def test_templates_are_read_once():
    assert template("evaluation.html") is template("evaluation.html")


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (0, "0"), (3, "3"), (2.345, "2.3"), (10.4, "10"), (12345.6, "12,346")]
)
def test_numbers(value, text):
    assert number(value) == text


def test_intervals():
    assert interval(Estimate(0.5, 0.333, 1.2)) == "50% (33%-120%)" and interval(None) == ""
