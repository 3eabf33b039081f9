"""What commands print besides their result: lines on stderr, and errors as one line and exit code 1."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from presift.core import errors
from presift_client import Overloaded, PresiftError


def print_stderr(line: str) -> None:
    """Print a line to stderr; stdout stays free for the result."""
    print(line, file=sys.stderr, flush=True)


def fail(message: str) -> NoReturn:
    """Print an error and end the command with exit code 1."""
    print_stderr(f"error: {message}")
    raise typer.Exit(1)


@contextmanager
def exit_on_error() -> Iterator[None]:
    """End the command with one line for the errors that calls, files and values raise."""
    try:
        yield
    except PresiftError as error:
        fail(f"{error}{_field_and_limit(error)}{_retry_time(error)}")
    except errors.PresiftError as error:
        fail(error.message)
    except OSError as error:
        fail(str(error) if error.filename is None else f"{error.filename}: {error.strerror}")
    except ValueError as error:
        fail(str(error))


def _field_and_limit(error: PresiftError) -> str:
    """Field and limit, unless the message already names them."""
    named = {"field": error.field, "limit": error.limit}
    missing = [f"{name} {value}" for name, value in named.items() if value and value not in str(error)]
    return f" ({', '.join(missing)})" if missing else ""


def _retry_time(error: PresiftError) -> str:
    if not isinstance(error, Overloaded) or error.retry_after_s is None:
        return ""
    return f"; retry after {error.retry_after_s:.1f} s"
