"""How commands tell what goes wrong: one line on stderr, and exit code 1."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from presift_client import PresiftError


def say(line: str) -> None:
    """A line for whoever watches; stdout stays free for the answer."""
    print(line, file=sys.stderr, flush=True)


def fail(message: str) -> NoReturn:
    """End the command."""
    say(f"error: {message}")
    raise typer.Exit(1)


@contextmanager
def errors_told() -> Iterator[None]:
    """What a call or a file may raise ends the command in one line."""
    try:
        yield
    except PresiftError as error:
        where = f" (field {error.field}, limit {error.limit})" if error.field else ""
        fail(f"{error}{where}")
    except (ValueError, OSError) as error:
        fail(str(error))
