"""Errors, as one line on stderr."""

import grpc
import pytest
import typer

from presift.cli.render.console import exit_on_error
from presift.core import errors
from presift_client import Overloaded, PresiftError
from presift_client.errors import Details

WINDOW = ">= 32 tokens (the window)"


@pytest.mark.parametrize(
    ("message", "field", "limit", "line"),
    [
        (f"budget is 5; it must be {WINDOW}", "budget", WINDOW, f"budget is 5; it must be {WINDOW}"),
        ("strict: too late", "budget.max_ttft_ms", "<= 4", "strict: too late (field budget.max_ttft_ms, limit <= 4)"),
        ("queue is full", "queue", "8", "queue is full (limit 8)"),
        ("no server", "", "", "no server"),
    ],
)
def test_field_and_limit_are_printed_once(capsys, message, field, limit, line):
    details = Details(field=field, limit=limit)
    with pytest.raises(typer.Exit), exit_on_error():
        raise PresiftError(message, grpc.StatusCode.INVALID_ARGUMENT, details)
    assert capsys.readouterr().err == f"error: {line}\n"


@pytest.mark.parametrize(("retry_after_s", "line"), [(2.5, "full; retry after 2.5 s"), (None, "full")])
def test_the_time_to_retry_is_printed(capsys, retry_after_s, line):
    details = Details(retry_after_s=retry_after_s)
    with pytest.raises(typer.Exit), exit_on_error():
        raise Overloaded("full", grpc.StatusCode.RESOURCE_EXHAUSTED, details)
    assert capsys.readouterr().err == f"error: {line}\n"


def test_a_file_that_is_missing_is_named(capsys, tmp_path):
    path = tmp_path / "none.txt"
    with pytest.raises(typer.Exit), exit_on_error():
        path.read_text()
    assert capsys.readouterr().err == f"error: {path}: No such file or directory\n"


@pytest.mark.parametrize("error", [errors.PresiftError("bad"), ValueError("bad"), OSError("bad")])
def test_errors_of_this_process_are_printed(capsys, error):
    with pytest.raises(typer.Exit), exit_on_error():
        raise error
    assert capsys.readouterr().err == "error: bad\n"
