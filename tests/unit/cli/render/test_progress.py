"""Progress while a prompt is read: what it says, and only on a terminal."""

import io
import time

import pytest
from rich.console import Console

from presift.cli.commands.generate import print_stream
from presift.cli.render import progress
from presift.cli.render.progress import ReadingProgress, progress_text
from presift_client import Decision, Delta, Model, Usage

MODEL = Model("m", "r", 100)


def decision(predicted_ttft_ms):
    return Decision(
        "full", "requested", "all of [it]", 4770, 4770, 4770, 0, None, "not_used", MODEL, MODEL, 1.0, 0.0, 0.0,
        predicted_ttft_ms=predicted_ttft_ms,
    )  # fmt: skip


USAGE = Usage(4770, 4770, 4770, 0, 1, "stop", 1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("decided", "elapsed_s", "text"),
    [
        (decision(24_000.0), 4.0, "reading 4,770 tokens, about 20 s left"),
        (decision(24_000.0), 30.0, "reading 4,770 tokens, 30 s (predicted: 24.0 s)"),
        (decision(None), 4.0, "reading 4,770 tokens, 4 s"),
        (None, 4.0, "reading the prompt, 4 s"),
        (decision(24_000.0), 0.5, ""),
    ],
)
def test_it_says_how_long_it_still_takes(decided, elapsed_s, text):
    assert progress_text(decided, elapsed_s) == text


def test_it_is_shown_on_a_terminal_and_removed():
    said, now = io.StringIO(), [0.0]
    with ReadingProgress(Console(file=said, force_terminal=True, width=80), lambda: now[0]) as shown:
        now[0] = 4.0
        shown.print("a [decision]")
        shown.show(decision(24_000.0))
        deadline = time.monotonic() + 20
        while "about 20 s left" not in said.getvalue() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert "about 20 s left" in said.getvalue() and "a [decision]\n" in said.getvalue()
        shown.stop()
        shown.stop()
        after = said.getvalue()
        time.sleep(0.6)
        assert said.getvalue() == after and after.endswith("\x1b[2K")


class FakeClient:
    def stream(self, **options):
        yield decision(24_000.0)
        time.sleep(0.05)
        yield Delta("an answer", (1,))
        yield USAGE


def test_nothing_is_shown_where_stderr_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_QUIET_S", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    print_stream(FakeClient(), {})
    out, err = capsys.readouterr()
    assert out == "an answer\n" and "\x1b" not in err and "reading" not in err
    assert [line[:9] for line in err.splitlines()] == ["[full: re", "[first to"]
