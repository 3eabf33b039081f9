"""Reloads files on SIGHUP: the policy file here, and others that implement `Reloadable`.

TLS certificates need no signal: `presift.rpc.security.file_watcher` reloads them when the files change. A policy file
changes the answers, so that the operator decides when it is complete.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from presift.core.errors import PresiftError
from presift.orchestrator.config.overrides import OverrideTable
from presift.orchestrator.config.policy_file import PolicyFile, load_policy_file
from presift.orchestrator.config.policy_settings import PolicySettings, policy_defaults
from presift.orchestrator.routing.choice import Defaults

log = logging.getLogger(__name__)


class PolicySource:
    """The current override table: that of the policy file, or `settings_table` without a file (`load` None).

    Loads the file when created. Raises InvalidRequest.
    """

    def __init__(self, settings_table: OverrideTable, load: Callable[[], PolicyFile] | None = None) -> None:
        self._settings_table = settings_table
        self._load = load
        self.file = None if load is None else load()

    @property
    def table(self) -> OverrideTable:
        """The table to use now. A request reads it once."""
        return self._settings_table if self.file is None else self.file.table

    async def reload(self) -> None:
        """Read the file again. If it is invalid, log the error and keep the previous one."""
        if self._load is None:
            return
        try:
            # In a thread: parsing a large file must not block the event loop. The assignment is atomic.
            self.file = await asyncio.to_thread(self._load)
        except PresiftError as error:
            log.error("invalid policy file, the previous one stays in use: %s", error.message)
        except Exception:  # a bug must not stop later reloads
            log.exception("cannot load the policy file, the previous one stays in use")
        else:
            log.info("policy file in use: sha256 %s", self.file.digest)


def fixed_policy(defaults: Defaults) -> PolicySource:
    """The same defaults for every request."""
    return PolicySource(OverrideTable(lambda changes: defaults))


def policy_source(settings: PolicySettings) -> PolicySource:
    """Raises InvalidRequest for settings that contradict each other or an invalid policy file."""
    path, source = settings.policy_file, fixed_policy(policy_defaults(settings))
    return source if path is None else PolicySource(source.table, lambda: load_policy_file(path, settings))


class Reloadable(Protocol):
    """A file, or several, in use. `reload` logs errors and keeps the previous content; it raises nothing."""

    async def reload(self) -> None: ...


@asynccontextmanager
async def reload_on_sighup(*files: Reloadable) -> AsyncIterator[None]:
    """Inside the block, SIGHUP reloads the files. Without files, SIGHUP keeps its usual effect."""
    if not files:
        yield
        return
    requested, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, requested.set)
    reloading = asyncio.create_task(_reload_when(requested, files), name="reload files")
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        reloading.cancel()


async def _reload_when(requested: asyncio.Event, files: Sequence[Reloadable]) -> None:
    """One reload at a time, so that the latest content wins."""
    while await requested.wait():
        requested.clear()
        for file in files:
            await file.reload()
