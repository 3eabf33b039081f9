"""`presift up`: run the local stack until Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
import time
from types import FrameType

from presift.cli.stack import LocalStack, Progress, ServiceFailed, StackOptions

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Stopped(BaseException):
    """Somebody asked us to stop."""


def run_until_stopped(options: StackOptions, progress: Progress) -> int:
    """0 after a clean drain; 1 if a service could not start or ended by itself."""
    for number in _STOP_SIGNALS:
        signal.signal(number, _stop)
    try:
        with LocalStack(options, progress) as stack:
            doors = ", ".join(stack.addresses)
            behind = [service for service in stack.services if service.address not in stack.addresses]
            addresses = ", ".join(f"{service.name} {service.address}" for service in behind)
            progress(f"presift is ready on {doors} ({addresses}); stop it with Ctrl-C")
            return _watch(stack, progress)
    except _Stopped:
        return 0
    except ServiceFailed as error:
        progress(f"error: {error}")
        return 1


def _watch(stack: LocalStack, progress: Progress) -> int:
    told = set[str]()
    while (dead := stack.failed()) is None:
        for lost in stack.lost():
            if lost.name not in told:
                progress(f"warning: {lost.name} ended with code {lost.exit_code()}; the others go on; see {lost.log}")
                told.add(lost.name)
        time.sleep(0.5)
    progress(f"error: {dead.name} ended with code {dead.exit_code()}; see {dead.log}")
    return 1


def _stop(number: int, frame: FrameType | None) -> None:
    # Once is enough: a second signal must not cut the drain short and leave processes behind.
    for each in _STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise _Stopped
