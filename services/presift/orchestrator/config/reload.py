"""The terms in force: the settings', or those of a policy file, swapped whole when SIGHUP asks for it."""

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
from presift.orchestrator.config.settings import OrchestratorSettings
from presift.orchestrator.routing.choice import Defaults

log = logging.getLogger(__name__)


class PolicySource:
    """`plain` holds where there is no file (`load` None). Else it is read here; raises InvalidRequest."""

    def __init__(self, plain: OverrideTable, load: Callable[[], PolicyFile] | None = None) -> None:
        self._plain = plain
        self._load = load
        self.file = None if load is None else load()

    @property
    def table(self) -> OverrideTable:
        """What holds now. A request reads it once."""
        return self._plain if self.file is None else self.file.terms

    @property
    def has_file(self) -> bool:
        return self._load is not None

    async def reload(self) -> None:
        """Read the file again. Where it is bad, that is logged and the old one stays."""
        if self._load is None:
            return
        try:
            # A large file must not hold up the answers; the swap itself is between two of them.
            self.file = await asyncio.to_thread(self._load)
        except PresiftError as error:
            log.error("the policy file is not taken, the old one stays in force: %s", error.message)
        except Exception:  # a defect of ours must not end the reloading
            log.exception("the policy file is not taken, the old one stays in force")
        else:
            log.info("policy file in force: sha256 %s", self.file.digest)


def fixed_policy(defaults: Defaults) -> PolicySource:
    """The same for everyone."""
    return PolicySource(OverrideTable(lambda changes: defaults))


def policy_source(settings: OrchestratorSettings) -> PolicySource:
    """Raises InvalidRequest for settings that cannot hold, and for a policy file that cannot be read."""
    path, plain = settings.policy_file, fixed_policy(settings.defaults())
    return plain if path is None else PolicySource(plain.table, lambda: load_policy_file(path, settings))


class Reloadable(Protocol):
    """What a file says. A bad one is logged and not taken; nothing is raised."""

    async def reload(self) -> None: ...


@asynccontextmanager
async def reload_on_sighup(*files: Reloadable) -> AsyncIterator[None]:
    """Inside, SIGHUP reads the files again; without any it does what it always does."""
    if not files:
        yield
        return
    asked, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, asked.set)
    reloading = asyncio.create_task(_reload_when(asked, files), name="reload files")
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        reloading.cancel()


async def _reload_when(asked: asyncio.Event, files: Sequence[Reloadable]) -> None:
    """One after the other, so that what was written last is in force in the end."""
    while await asked.wait():
        asked.clear()
        for file in files:
            await file.reload()
