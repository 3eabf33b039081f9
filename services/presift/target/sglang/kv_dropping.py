"""Waits at start for the plugin's self-check in the scheduler, and empties the radix cache after it."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol

from presift.core.errors import PresiftError

# Longer than the check waits for one answer.
_TIMEOUT_S = 200.0
_INTERVAL_S = 0.1

log = logging.getLogger(__name__)


# What is the same in every model replica of an engine.
_OF_EACH = ("page_tokens", "pool_tokens")


def of_all(states: list[dict[str, Any]]) -> dict[str, Any]:
    """The states of the plugin in an engine's model replicas as one. Counts are added; sizes are those of one replica.

    `checking` is True while any replica checks itself. `unsupported` is the first reason of a replica, None if all
    support KV dropping.
    """
    counts = {
        name: sum(state.get(name, 0) for state in states)
        for name, value in states[0].items()
        if type(value) is int and name not in _OF_EACH
    }
    return states[0] | {
        **counts,
        "unsupported": next((state["unsupported"] for state in states if state.get("unsupported")), None),
        "checking": any(state.get("checking", False) for state in states),
        "ranks_agree": all(state.get("ranks_agree", True) for state in states),
    }


class CheckedEngine(Protocol):
    """An engine that reports the state of its plugin."""

    async def plugin_state(self) -> dict[str, Any]: ...

    async def flush(self) -> bool: ...


async def why_unsupported(engine: CheckedEngine) -> str | None:
    """Why the engine cannot serve the routes that drop KV; None if it can. Then the radix cache is empty.

    Never raises: the other routes are served in any case.
    """
    waits_for = "result"
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            while (state := await engine.plugin_state()).get("checking"):
                await asyncio.sleep(_INTERVAL_S)
            if reason := state.get("unsupported"):
                return str(reason)
            waits_for = "empty radix cache"
            while not await engine.flush():
                # The check's last request may not have left the scheduler.
                await asyncio.sleep(_INTERVAL_S)
    except PresiftError as error:
        return f"the self-check failed: {error}"
    except TimeoutError:
        return f"the self-check failed: no {waits_for} within {_TIMEOUT_S:.0f} s"
    except Exception as error:
        log.exception("presift: the self-check failed")
        return f"the self-check failed: {type(error).__name__}"
    return None
