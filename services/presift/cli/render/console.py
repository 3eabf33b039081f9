"""How commands tell what goes wrong: one line on stderr, and exit code 1."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from presift_client import Overloaded, PresiftError


def say(line: str) -> None:
    """A line for whoever watches; stdout stays free for the answer."""
    print(line, file=sys.stderr, flush=True)


def fail(message: str) -> NoReturn:
    """End the command."""
    say(f"error: {message}")
    raise typer.Exit(1)


def _where(error: PresiftError) -> str:
    """Field and limit, unless the message names them already."""
    named = {"field": error.field, "limit": error.limit}
    unsaid = [f"{name} {value}" for name, value in named.items() if value and value not in str(error)]
    return f" ({', '.join(unsaid)})" if unsaid else ""


@contextmanager
def errors_told() -> Iterator[None]:
    """What a call or a file may raise ends the command in one line."""
    try:
        yield
    except Overloaded as error:
        again = "" if error.retry_after_s is None else f"; try again in {error.retry_after_s:.1f} s"
        fail(f"{error}{_where(error)}{again}")
    except PresiftError as error:
        fail(f"{error}{_where(error)}")
    except (ValueError, OSError) as error:
        fail(str(error))
