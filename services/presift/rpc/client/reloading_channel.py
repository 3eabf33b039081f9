"""A channel whose certificates change: calls go over a new one, those that run end on the one that they began on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc

from presift.rpc.security.file_watcher import FileWatcher

T = TypeVar("T")


class _Opened:
    """One channel, closed once it is retired and the last call on it has ended."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self._running = 0
        self._is_retired = False
        self._closing: asyncio.Task[None] | None = None

    @property
    def is_closed(self) -> bool:
        """All but for what closing itself takes."""
        return self._closing is not None

    def is_ready(self) -> bool:
        return self.channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY

    def began(self, call: Any) -> Any:
        self._running += 1
        call.add_done_callback(self._ended)
        return call

    def retire(self) -> None:
        self._is_retired = True
        self._close_if_idle()

    def _ended(self, call: Any) -> None:
        self._running -= 1
        self._close_if_idle()

    def _close_if_idle(self) -> None:
        if self._is_retired and self._running == 0 and self._closing is None:
            self._closing = asyncio.ensure_future(self.channel.close())


class ReloadingChannel(grpc.aio.Channel, Generic[T]):
    """What `open_one` makes of the source's value, made anew when a call or a question finds another value.

    The new channel is taken once it is connected, or the old one is not: nobody waits for a handshake, and what the
    peer does not accept costs nothing while the old connection stands.
    """

    def __init__(self, source: FileWatcher[T], open_one: Callable[[T], grpc.aio.Channel]) -> None:
        self._source = source
        self._open_one = open_one
        self._value = source.current()
        self._opened = _Opened(open_one(self._value))
        self._coming: _Opened | None = None
        self._earlier: list[_Opened] = []
        self._replaced = asyncio.Event()

    def current(self) -> _Opened:
        """The channel for new calls."""
        value = self._source.current()
        if value is not self._value:
            self._retire(self._coming)
            self._coming, self._value = _Opened(self._open_one(value)), value
        if self._coming is not None and (self._coming.is_ready() or not self._opened.is_ready()):
            self._retire(self._opened)
            self._opened, self._coming = self._coming, None
            self._replaced.set()
            self._replaced = asyncio.Event()
        return self._opened

    def _retire(self, opened: _Opened | None) -> None:
        if opened is not None:
            self._earlier = [each for each in self._earlier if not each.is_closed] + [opened]
            opened.retire()

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        return _Method(self, "unary_unary", arguments, options)

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        return _Method(self, "unary_stream", arguments, options)

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:
        return _Method(self, "stream_unary", arguments, options)

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        return _Method(self, "stream_stream", arguments, options)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self.current().channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """A channel that is replaced by one of the same state is no change: the peer was not away."""
        while not await self._changed(last_observed_state):
            if self.get_state() is not last_observed_state:
                return

    async def _changed(self, last_observed_state: grpc.ChannelConnectivity) -> bool:
        """Waits until the state has changed, which is true, or the channel was replaced."""
        current = self.current()
        replaced = asyncio.ensure_future(self._replaced.wait())
        changing = asyncio.ensure_future(current.channel.wait_for_state_change(last_observed_state))
        try:
            await asyncio.wait({changing, replaced}, return_when=asyncio.FIRST_COMPLETED)
            return not replaced.done()
        finally:
            for waiting in (changing, replaced):
                waiting.cancel()
            await asyncio.gather(changing, replaced, return_exceptions=True)

    async def channel_ready(self) -> None:
        while (state := self.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
            await self.wait_for_state_change(state)

    async def close(self, grace: float | None = None) -> None:
        for opened in (*self._earlier, self._coming, self._opened):
            if opened is not None:
                await opened.channel.close(grace)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class _Method:
    """A method of a stub, over whichever channel is current when it is called."""

    def __init__(
        self, source: ReloadingChannel[Any], kind: str, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        self._source = source
        self._kind = kind
        self._arguments = arguments
        self._options = options
        self._made: tuple[_Opened, Any] | None = None

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        opened = self._source.current()
        if self._made is None or self._made[0] is not opened:
            method = getattr(opened.channel, self._kind)(*self._arguments, **self._options)
            self._made = opened, method
        return opened.began(self._made[1](*arguments, **options))
