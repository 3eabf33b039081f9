"""Watches a replica: fetches GetInfo when its channel becomes READY, and clears it on disconnect."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import grpc

from presift.core.errors import PresiftError
from presift.rpc.pool.replica import I, Replica, S
from presift.rpc.pool.service import Service

log = logging.getLogger(__name__)

_RETRY_S = 1.0
_FAILED = (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN)


async def watch(replica: Replica[S, I], service: Service[S, I], changed: Callable[[], None]) -> None:
    """Runs until cancelled. Calls `changed` after every change."""
    while True:
        state = replica.channel.get_state(try_to_connect=True)
        if state is grpc.ChannelConnectivity.READY and not await _fetch_info(replica, service, changed):
            continue
        if state in _FAILED and not replica.was_tried:
            replica.was_tried = True
            changed()
        await replica.channel.wait_for_state_change(state)
        if replica.known is not None:  # even if it is back already: it may be another process with another model
            log.warning("%s %s disconnected", service.role, replica.address)
            replica.known, replica.unused = None, ""
            changed()


async def _fetch_info(replica: Replica[S, I], service: Service[S, I], changed: Callable[[], None]) -> bool:
    try:
        replica.known = await service.get_info(replica.stub)
    except PresiftError as error:
        log.info("%s %s does not answer GetInfo: %s", service.role, replica.address, error.message)
        await asyncio.sleep(_RETRY_S)
        return False
    finally:
        replica.was_tried = True
        changed()
    log.info("%s %s is ready", service.role, replica.address)
    return True
