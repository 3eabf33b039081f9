"""Runs the local stack until a signal arrives: checks settings and ports first, then watches the services."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

from pydantic import ValidationError

from presift.cli.stack.stack import LocalStack, Progress, ServiceFailed, StackOptions
from presift.core.errors import PresiftError
from presift.models.folder import tokenizer_fingerprint
from presift.orchestrator.config.reload import policy_source
from presift.orchestrator.config.settings import OrchestratorSettings
from presift.rpc.security.binding import check_binding

_LAST_PORT = 65_535
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Stopped(BaseException):
    """SIGINT or SIGTERM arrived."""


def run_until_stopped(options: StackOptions, progress: Progress) -> int:
    """The exit code: 0 after a clean stop, 1 if a service could not start or ended on its own."""
    for number in _STOP_SIGNALS:
        signal.signal(number, _stop)
    try:
        settings = check_settings(options)
        if not settings.cross_vocabulary:
            check_vocabularies(options.draft, options.target)
        is_tls = settings.tls_cert is not None
        check_free(options.listens)
        check_free(options.metrics_listens, "--metrics-from")
        check_free(options.http_listens, "--http-listen")
        with LocalStack(options, progress) as stack:
            backends = [service for service in stack.services if service.address not in stack.addresses]
            addresses = ", ".join(f"{service.name} {service.address}" for service in backends)
            progress(f"presift is ready on {', '.join(stack.addresses)} ({addresses}); stop it with Ctrl-C")
            for address in stack.http_addresses:
                progress(f"OpenAI-compatible API: base_url http{'s' if is_tls else ''}://{address}/v1")
            return _watch(stack, progress)
    except _Stopped:
        return 0
    except (ServiceFailed, PresiftError) as error:
        progress(f"error: {error}")
        return 1


def check_settings(options: StackOptions) -> OrchestratorSettings:
    """The orchestrator's settings, from the same flags and environment variables that it will read.

    Raises PresiftError for settings with which it would not start, before minutes are spent on loading models.
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
    settings.allowed_origins()
    policy_source(settings)
    return settings


def check_vocabularies(draft: str, target: str) -> None:
    """Raise PresiftError if draft and target are folders whose token ids differ.

    The orchestrator would refuse them too, but only after they are loaded. Hub ids, which may not be downloaded yet,
    and models without any tokenizer are left to it.
    """
    folders = [Path(name).expanduser() for name in (draft, target)]
    if folders[0] == folders[1] or not all(folder.is_dir() for folder in folders):
        return
    if len({tokenizer_fingerprint(folder) for folder in folders}) > 1:
        both = f"draft {folders[0].name} and target {folders[1].name}"
        raise PresiftError(
            f"{both} do not share a vocabulary; use a draft of the target's family or --cross-vocabulary"
        )


def check_free(addresses: Iterable[str], flag: str = "--listen") -> None:
    """Raise PresiftError for the first HOST:PORT that cannot be listened on. `flag` is the flag that changes it."""
    for address in addresses:
        host, _, port = address.rpartition(":")
        try:
            if int(port) > _LAST_PORT:  # the resolver would wrap it to another port
                raise OverflowError
            family, *_, endpoint = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                # As servers do: a port with only closing connections is free.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(endpoint)
        except (OSError, OverflowError) as error:
            why = error.strerror if isinstance(error, OSError) else f"ports end at {_LAST_PORT}"
            raise PresiftError(f"cannot listen on {address}: {why}; choose another port with {flag}") from None


def _watch(stack: LocalStack, progress: Progress) -> int:
    reported = set[str]()
    while (failed := stack.failed()) is None:
        for ended in stack.ended():
            if ended.name not in reported:
                progress(f"warning: {ended.exit_report()}; the other services keep running")
                reported.add(ended.name)
        time.sleep(0.5)
    progress(f"error: {failed.exit_report()}")
    return 1


def _stop(number: int, frame: FrameType | None) -> None:
    # A second signal must not cut the drain short and leave processes behind.
    for each in _STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise _Stopped
