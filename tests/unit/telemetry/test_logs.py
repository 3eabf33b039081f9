"""Log lines: text, or one JSON object each with the ids of its trace and nothing that was not meant to be told."""

import json
import logging

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from presift.telemetry.logs import LogFormat, set_up


@pytest.fixture
def lines(capfd):
    """look -> the lines that were written since, by a root logger of this test's own."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level

    def written():
        root.handlers[0].flush()
        return capfd.readouterr().err.splitlines()

    def lines(look):
        root.handlers = []  # pytest's own
        set_up("INFO", look)
        return written

    yield lines
    root.handlers = handlers
    root.setLevel(level)


def test_text_is_as_it_was(lines):
    written = lines(LogFormat.TEXT)
    logging.getLogger("presift.x").warning("late by %d s", 3)
    logging.getLogger("presift.x").debug("not told")
    (line,) = written()
    assert line.endswith(" WARNING presift.x late by 3 s")


def test_a_text_with_control_characters_forges_no_line(lines):
    written = lines(LogFormat.TEXT)
    forged = "bad\n2026-01-01 00:00:00,000 INFO presift.x paid\r\x1b[2K\x85\u2028äöü"
    logging.getLogger("presift.x").warning("refused: %s", forged)
    (line,) = written()
    assert line.endswith(r"refused: bad\n2026-01-01 00:00:00,000 INFO presift.x paid\r\x1b[2K\x85\u2028äöü")


def test_json_says_whose_trace_it_is(lines):
    written = lines(LogFormat.JSON)
    with TracerProvider().get_tracer("test").start_as_current_span("call") as span:
        logging.getLogger("presift.x").warning("late by %d s", 3)
        context = span.get_span_context()
    logging.getLogger("presift.x").info("nobody's")
    inside, outside = map(json.loads, written())
    assert set(inside) == {"time", "level", "logger", "message", "trace_id", "span_id"}
    assert (inside["level"], inside["logger"], inside["message"]) == ("WARNING", "presift.x", "late by 3 s")
    assert inside["trace_id"] == trace.format_trace_id(context.trace_id)
    assert inside["span_id"] == trace.format_span_id(context.span_id)
    assert (outside["trace_id"], outside["span_id"]) == ("", "")
    assert inside["time"].endswith("+00:00") and inside["time"] < outside["time"]


def test_an_exception_is_one_line_and_what_is_beside_a_message_is_not_told(lines):
    written = lines(LogFormat.JSON)
    try:
        raise ValueError("bad")
    except ValueError:
        logging.getLogger("presift.x").exception("failed\nhere", extra={"prompt": "xylophone"})
    (line,) = written()
    assert "xylophone" not in line
    assert "ValueError: bad" in json.loads(line)["exc_info"] and json.loads(line)["message"] == "failed\nhere"
