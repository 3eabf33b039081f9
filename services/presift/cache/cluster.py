"""The commands of a Redis Cluster: each goes to the primary that serves its key.

redis-py's cluster client finds the nodes, keeps their connections and remembers a slot that has moved. Its own
`execute_command` is not used. It sends ASKING and the command on different connections, so that a key on its way to
another node is not found. It closes the connections of all callers and sleeps 0.25 s if one slot is down. And it looks
for the nodes again within the timeout of a command, at each failure, which reconnects to all nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable

from redis.asyncio.cluster import ClusterNode, PipelineCommand, RedisCluster
from redis.exceptions import AskError, MovedError, SlotNotCoveredError
from redis.exceptions import ConnectionError as RedisConnectionError

from presift.cache.one_server import NOT_PRIMARY
from presift.cache.redis_url import RedisAddress
from presift.cache.store import CacheLimits
from presift.core.errors import InvalidRequest
from presift.rpc.tasks import retrieve_error, start_detached

# Codes after which the nodes are looked up again, as they are if a node does not answer.
_OTHER_NODES = NOT_PRIMARY | {"CLUSTERDOWN", "MOVED", "ASK"}
# The most nodes that one command is sent to.
_HOPS = 5
# A look-up asks the nodes in random order. One that does not answer for so long is given up, as often as this.
_LOOK_UP_TIMEOUT_S, _LOOK_UPS = 0.5, 6
# How often a check with random keys runs for each primary, at most: a primary is then missed once in e**20.
_ROUNDS = 20


class Cluster:
    """Looks the nodes up at the first command, from those of `address`, which are tried again whenever others fail.

    Raises InvalidRequest if the URL has a parameter that redis-py does not know.
    """

    def __init__(self, address: RedisAddress, limits: CacheLimits) -> None:
        try:
            self._client = RedisCluster(
                startup_nodes=[ClusterNode(host, port) for host, port in address.nodes],
                require_full_coverage=False,  # the other slots can be used
                dynamic_startup_nodes=False,
                max_connections=1 << 30,  # of a node, where redis-py refuses instead of waiting
                socket_timeout=None,  # as for one server
                socket_connect_timeout=None,
                protocol=2,
                driver_info=None,
                decode_responses=False,
                **address.options,
            )
        except TypeError:  # also one that is set here
            limit = "a URL with no parameters but those of TLS, such as ssl_ca_certs"
            raise InvalidRequest("cache_url", "a URL with an unknown parameter", limit) from None
        self._nodes = self._client.nodes_manager
        self._seeds = dict(self._nodes.startup_nodes)
        self._connections = asyncio.Semaphore(limits.max_connections)
        self._rest_s = limits.rest_s
        self._looking_up: asyncio.Task[None] | None = None
        self._looked_up_s = -math.inf
        self._reached: set[str] = set()

    async def send(self, *command: str | bytes | int) -> object:
        """The reply of the node that serves the command's key, the first one of a script. Raises redis-py's errors."""
        async with self._connections:
            if not self._nodes.slots_cache:
                await asyncio.shield(self._look_up())
            key = command[3] if command[0] == "EVAL" else command[1]
            node = self._client.get_node_from_key(str(key))
            assert node is not None  # only a replica may be missing
            return await self._follow(node, command)

    async def on_each_primary(self, check: Callable[[], Awaitable[None]]) -> None:
        """Run `check`, whose keys are random, until each primary has carried out one of its commands."""
        self._reached.clear()
        rounds, primaries = 0, {""}
        while primaries - self._reached and rounds <= _ROUNDS * len(primaries):
            await check()
            rounds, primaries = rounds + 1, {node.name for node in self._client.get_primaries()}

    async def check_asking(self) -> None:
        """Send each primary what precedes the commands of a slot on its way to it."""
        for node in self._client.get_primaries():
            await _ask(node, ("ASKING",))
            self._reached.add(node.name)

    async def recover(self, code: str, timeout_s: float) -> None:
        """A command failed with this code of a node, empty if there was none. Begins to look the nodes up, if they may
        be others now; at most every `rest_s`, because all connections are renewed then."""
        if (not code or code in _OTHER_NODES) and time.monotonic() - self._looked_up_s >= self._rest_s:
            self._look_up()

    async def aclose(self) -> None:
        """Close every connection, for at most a second or two."""
        if self._looking_up is not None:
            self._looking_up.cancel()
        for nodes in ("nodes_cache", "startup_nodes"):
            with contextlib.suppress(Exception):
                async with asyncio.timeout(1.0):
                    await self._nodes.aclose(nodes)

    async def _follow(self, node: ClusterNode, command: tuple[str | bytes | int, ...]) -> object:
        """The reply of `node`, or of the one that it names instead."""
        is_asked = False
        for hops_left in reversed(range(_HOPS)):
            try:
                reply: object = await (_ask(node, command) if is_asked else node.execute_command(*command))
            except AskError as other:  # MovedError too
                if not hops_left:
                    raise
                is_asked = not isinstance(other, MovedError)
                node = await self._named(other)
            except RedisConnectionError:  # the idle ones are not better
                await node.disconnect_free_connections()
                raise
            else:
                self._reached.add(node.name)
                return reply
        raise AssertionError("the last hop returns or raises")

    async def _named(self, other: AskError) -> ClusterNode:
        if isinstance(other, MovedError):
            await self._nodes.move_slot(other)
        node = self._client.get_node(other.host, other.port)
        if node is None:  # it serves no slot yet
            node = ClusterNode(other.host, other.port, **self._client.connection_kwargs)
            self._nodes.set_nodes(self._nodes.nodes_cache, {node.name: node})
        return node

    def _look_up(self) -> asyncio.Task[None]:
        """In a task that callers share and that outlives their timeouts."""
        if self._looking_up is None or self._looking_up.done():
            self._looked_up_s = time.monotonic()
            self._looking_up = start_detached(self._find_nodes(), "look the cluster's nodes up")
            self._looking_up.add_done_callback(retrieve_error)
        return self._looking_up

    async def _find_nodes(self) -> None:
        self._nodes.startup_nodes = self._nodes.nodes_cache | self._seeds
        for left in reversed(range(_LOOK_UPS)):
            try:
                async with asyncio.timeout(_LOOK_UP_TIMEOUT_S):
                    await self._nodes.initialize()
                return
            except IndexError:  # redis-py takes the first primary of a cluster that has none
                raise SlotNotCoveredError("no slot has a primary") from None
            except TimeoutError:
                if not left:
                    raise


async def _ask(node: ClusterNode, command: tuple[str | bytes | int, ...]) -> object:
    """The reply of a node that the slot is on its way to: ASKING must precede the command on its connection."""
    asking, asked = PipelineCommand(0, "ASKING"), PipelineCommand(1, *command)
    await node.execute_pipeline([asking, asked])
    for each in (asking, asked):
        if isinstance(each.result, Exception):
            raise each.result
    reply: object = asked.result
    return reply
