"""`presift up`: run the local stack until Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterable
from types import FrameType

from pydantic import ValidationError

from presift.cli.stack.stack import LocalStack, Progress, ServiceFailed, StackOptions
from presift.core.errors import PresiftError
from presift.orchestrator.config.reload import policy_source
from presift.orchestrator.config.settings import OrchestratorSettings
from presift.rpc.security.binding import check_binding

_LAST_PORT = 65_535
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Stopped(BaseException):
    """Somebody asked us to stop."""


def run_until_stopped(options: StackOptions, progress: Progress) -> int:
    """0 after a clean drain; 1 if a service could not start or ended by itself."""
    for number in _STOP_SIGNALS:
        signal.signal(number, _stop)
    try:
        is_tls = check_settings(options).tls_cert is not None
        check_free(options.listens)
        check_free(options.metrics_listens, "--metrics-from")
        check_free(options.http_listens, "--http-listen")
        with LocalStack(options, progress) as stack:
            doors = ", ".join(stack.addresses)
            behind = [service for service in stack.services if service.address not in stack.addresses]
            addresses = ", ".join(f"{service.name} {service.address}" for service in behind)
            progress(f"presift is ready on {doors} ({addresses}); stop it with Ctrl-C")
            for address in stack.http_addresses:
                progress(f"OpenAI's clients: base_url http{'s' if is_tls else ''}://{address}/v1")
            return _watch(stack, progress)
    except _Stopped:
        return 0
    except (ServiceFailed, PresiftError) as error:
        progress(f"error: {error}")
        return 1


def check_settings(options: StackOptions) -> OrchestratorSettings:
    """The orchestrator's. Raises PresiftError for one that would refuse to listen, or its policy file: known before
    minutes go into loading models.

    Its variables count as they do for the orchestrator itself.
    """
    http = ["--http-listen", options.http_listen] if options.http_listen else []
    flags = ["--listen", options.listen, *http, *options.orchestrator_flags]
    try:
        settings = OrchestratorSettings(_cli_parse_args=flags)  # type: ignore[call-arg]
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        raise PresiftError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    check_binding(settings.listen, settings.knows_callers, settings.insecure)
    if settings.http_listen is not None:
        check_binding(settings.http_listen, settings.knows_callers, settings.insecure, "http_listen")
    policy_source(settings)
    return settings


def check_free(addresses: Iterable[str], flag: str = "--listen") -> None:
    """Raise PresiftError for the first of these, HOST:PORT, on which nobody can listen: it is taken, say. `flag` takes
    another."""
    for address in addresses:
        host, _, port = address.rpartition(":")
        try:
            if int(port) > _LAST_PORT:  # the resolver would take it for another one
                raise OverflowError
            family, *_, place = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                # As servers do: what a closed connection left behind takes no port.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(place)
        except (OSError, OverflowError) as error:
            why = error.strerror if isinstance(error, OSError) else "there is no such port"
            raise PresiftError(f"cannot listen on {address}: {why}; {flag} takes another one") from None


def _watch(stack: LocalStack, progress: Progress) -> int:
    told = set[str]()
    while (dead := stack.failed()) is None:
        for lost in stack.lost():
            if lost.name not in told:
                progress(f"warning: the others go on without {lost.obituary()}")
                told.add(lost.name)
        time.sleep(0.5)
    progress(f"error: {dead.obituary()}")
    return 1


def _stop(number: int, frame: FrameType | None) -> None:
    # Once is enough: a second signal must not cut the drain short and leave processes behind.
    for each in _STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise _Stopped
