"""What goes wrong, in one line on stderr."""

import grpc
import pytest
import typer

from presift.cli.render.console import errors_told
from presift_client import Overloaded, PresiftError
from presift_client.errors import Details

WINDOW = ">= 32 tokens (the window)"


@pytest.mark.parametrize(
    ("message", "field", "limit", "line"),
    [
        (f"budget is 5; it must be {WINDOW}", "budget", WINDOW, f"budget is 5; it must be {WINDOW}"),
        ("strict: too late", "budget.max_ttft_ms", "<= 4", "strict: too late (field budget.max_ttft_ms, limit <= 4)"),
        ("queue is full", "queue", "8", "queue is full (limit 8)"),
        ("nobody there", "", "", "nobody there"),
    ],
)
def test_field_and_limit_are_told_once(capsys, message, field, limit, line):
    details = Details(field=field, limit=limit)
    with pytest.raises(typer.Exit), errors_told():
        raise PresiftError(message, grpc.StatusCode.INVALID_ARGUMENT, details)
    assert capsys.readouterr().err == f"error: {line}\n"


@pytest.mark.parametrize(("retry_after_s", "told"), [(2.5, "full; try again in 2.5 s"), (None, "full")])
def test_when_to_come_back_is_told(capsys, retry_after_s, told):
    details = Details(retry_after_s=retry_after_s)
    with pytest.raises(typer.Exit), errors_told():
        raise Overloaded("full", grpc.StatusCode.RESOURCE_EXHAUSTED, details)
    assert capsys.readouterr().err == f"error: {told}\n"
