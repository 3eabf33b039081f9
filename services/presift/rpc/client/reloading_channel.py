"""A channel that follows changed certificates: new calls use a new channel, running calls finish on the old one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc

from presift.rpc.security.file_watcher import FileWatcher

T = TypeVar("T")


class _Opened:
    """One channel. It is closed once it is retired and its last call has ended."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self._running = 0
        self._is_retired = False
        self._closing: asyncio.Task[None] | None = None

    @property
    def is_closed(self) -> bool:
        """Whether closing has begun."""
        return self._closing is not None

    def is_ready(self) -> bool:
        return self.channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY

    def track(self, call: Any) -> Any:
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
    """The channel that `open_one` makes from the source's value; a changed value makes a new channel.

    The new channel is used once it is READY or the old one is not. So no call waits for a handshake, and certificates
    that the peer rejects do no harm while the old connection stands. This is not done by a new replica in the pool:
    that would need the same switch there, and one address would have two channels, breakers and loads meanwhile.
    """

    def __init__(self, source: FileWatcher[T], open_one: Callable[[T], grpc.aio.Channel]) -> None:
        self._source = source
        self._open_one = open_one
        self._value = source.current()
        self._opened = _Opened(open_one(self._value))
        self._next: _Opened | None = None
        self._retired: list[_Opened] = []
        self._replaced = asyncio.Event()

    def current(self) -> _Opened:
        """The channel for new calls."""
        value = self._source.current()
        if value is not self._value:
            self._retire(self._next)
            self._next, self._value = _Opened(self._open_one(value)), value
        if self._next is not None and (self._next.is_ready() or not self._opened.is_ready()):
            self._retire(self._opened)
            self._opened, self._next = self._next, None
            self._replaced.set()
            self._replaced = asyncio.Event()
        return self._opened

    def _retire(self, opened: _Opened | None) -> None:
        if opened is not None:
            self._retired = [each for each in self._retired if not each.is_closed] + [opened]
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
        """Replacing the channel is no change if the state stays the same: the peer did not disconnect."""
        while not await self._changed(last_observed_state):
            if self.get_state() is not last_observed_state:
                return

    async def _changed(self, last_observed_state: grpc.ChannelConnectivity) -> bool:
        """True once the state has changed, False once the channel was replaced."""
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
        for opened in (*self._retired, self._next, self._opened):
            if opened is not None:
                await opened.channel.close(grace)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class _Method:
    """A stub method that uses the current channel at each call."""

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
        return opened.track(self._made[1](*arguments, **options))
