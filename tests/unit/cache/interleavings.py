"""Runs asyncio code of several processes over one fake Redis in all orders that a network and a kernel may cause.

It is the code itself that runs, not a model of it. Each process has an event loop (`Loop`), whose clock is the world's:
time moves only when nothing else can happen. A process and Redis share nothing but commands. So all that can differ
between two runs is the order of commands, which of them are lost, and when a process stops. These are the choices:

- `run` the first command that waits, or another one before it (`overtake`);
- `delay` a command until something else is due;
- `hold` a command: its process waits no longer than the timeout; the command may `arrive` afterwards, or never;
- `lose` the reply of a command;
- `kill` a process, `pause` it for PAUSE_S, or let its first caller `leave`: after a step of this process.

The first action is the usual one and free; each other one is a fault. `explore` runs every order with at most so many
faults. It leaves out what it has seen: states are equal if tasks stand at the same places with the same local values,
and Redis, commands, timers, time and faults are the same.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Hashable, Iterator
from contextvars import Context
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

from presift.cache.redis_client import CacheUnavailable
from presift.cache.store import Outcome

from ...fake_redis import FakeRedis

PAUSE_S = 1.0
# The code whose local values belong to a state. Others have times of the real clock.
_CODE = "/presift/cache/"


@dataclass(eq=False)
class Command:
    """A command on its way. `future` gets the reply; it is done if nobody waits any more. `fate` is `delay` or `hold`
    for one that does not arrive now."""

    process: int
    words: tuple[str | bytes | int, ...]
    future: asyncio.Future[object]
    fate: str = ""

    @property
    def is_late(self) -> bool:
        return self.future.done()


Action = tuple[str, int]


class Loop(asyncio.AbstractEventLoop):
    """The event loop of one process, as far as tasks, futures and timers need it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._order = count()
        self.ready: deque[asyncio.Handle] = deque()
        self.timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.is_dead = False
        self.paused_until_s = 0.0

    def time(self) -> float:
        return self._world.now

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self.ready.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self.timers, (when, next(self._order), handle))
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=self, name=name, context=context)
        self.tasks.append(task)
        return task

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self._world.errors.append(str(context))

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is skipped when it is due."""

    @property
    def next_s(self) -> float | None:
        """When this loop has something to do."""
        while self.timers and self.timers[0][2].cancelled():
            heapq.heappop(self.timers)
        if self.is_dead or not (self.timers or self.ready):
            return None
        when_s = self.timers[0][0] if self.timers and not self.ready else self._world.now
        return max(when_s, self.paused_until_s)

    def run(self) -> bool:
        """Run all that is due. Whether there was anything."""
        has_run = False
        asyncio._set_running_loop(self)
        try:
            while (due_s := self.next_s) is not None and due_s <= self._world.now:
                while self.timers and self.timers[0][0] <= self._world.now:
                    self.ready.append(heapq.heappop(self.timers)[2])
                while self.ready:
                    handle = self.ready.popleft()
                    if not handle.cancelled():
                        has_run = True
                        handle._run()
        finally:
            asyncio._set_running_loop(None)
        return has_run


class Client:
    """The commands of one process: what RedisStore and RedisBuildLock need of a RedisClient."""

    is_available = True

    def __init__(self, world: World, process: int) -> None:
        self._world = world
        self._process = process

    async def execute(self, *command: str | bytes | int, timeout_s: float) -> object:
        if self._world.is_over:
            raise CacheUnavailable(Outcome.ERROR)
        future = asyncio.get_running_loop().create_future()
        self._world.commands.append(Command(self._process, command, future))
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            self._world.marks["timeouts"] += 1
            raise CacheUnavailable(Outcome.TIMEOUT) from None


@dataclass(eq=False)
class World:
    """Processes, Redis and time. `start` begins a caller's request in a process; `check` is called after each command
    with what Redis held before. `marks` are counts, which belong to the state: `timeouts` of commands, and the
    scenario's own."""

    processes: int
    most_faults: int
    kinds: frozenset[str]
    check: Callable[[Any, Command, dict[str, bytes], dict[str, float]], None] = lambda *_: None
    now: float = 0.0
    loops: list[Loop] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    callers: list[tuple[int, asyncio.Task[Any]]] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    marks: Counter[str] = field(default_factory=Counter)
    done: list[Action] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    ended_s: dict[int, float] = field(default_factory=dict)
    left: set[int] = field(default_factory=set)
    is_over: bool = False
    _last: int = 0

    def __post_init__(self) -> None:
        self.redis = FakeRedis(lambda: self.now)
        self.loops = [Loop(self) for _ in range(self.processes)]

    def start(self, process: int, request: Coroutine[Any, Any, object]) -> None:
        number, task = len(self.callers), self.loops[process].create_task(request)
        task.add_done_callback(lambda _: self.ended_s.setdefault(number, self.now))
        self.callers.append((process, task))

    def settle(self) -> None:
        """Run all that is due, in all processes: they cannot influence each other."""
        for number, loop in enumerate(self.loops):
            if loop.run():
                self._last = number

    def actions(self) -> list[Action]:
        """What may happen now, the usual first; empty at the end."""
        waiting = [at for at, each in enumerate(self.commands) if not each.fate]
        ends_s = [when_s for loop in self.loops if (when_s := loop.next_s) is not None]
        usual: list[Action] = [("run", waiting[0])] if waiting else [("time", 0)] if ends_s else []
        if not usual:  # a command of a dead process may be delayed when nothing else is left
            usual = [("run", at) for at, each in enumerate(self.commands) if each.fate == "delay"][:1]
        if not usual or sum(self.faults.values()) >= self.most_faults or self._all_ended():
            return usual
        faults: list[Action] = [("overtake", at) for at in waiting[1:]]
        faults += [(name, at) for at in waiting[:1] for name in ("delay", "hold", "lose")]
        faults += [("arrive", at) for at, each in enumerate(self.commands) if each.fate == "hold" and each.is_late]
        loop = self.loops[self._last]
        if not loop.is_dead and loop.paused_until_s <= self.now:
            faults += [(name, self._last) for name in ("kill", "pause")]
            if next(self._staying(self._last), None) is not None:
                faults.append(("leave", self._last))
        return usual + [each for each in faults if each[0] in self.kinds]

    def do(self, action: Action) -> None:
        """Let it happen, and all that follows of itself."""
        name, at = action
        self.done.append(action)
        if name not in ("run", "time"):
            self.faults[name] += 1
        if name == "time":
            self._wait()
        elif name in ("delay", "hold"):
            self.commands[at].fate = name
        elif name in ("kill", "pause", "leave"):
            self._stop(name, at)
        else:
            self._carry_out(self.commands.pop(at), replies=name != "lose")
        self.settle()

    def _wait(self) -> None:
        self.now = min(when_s for loop in self.loops if (when_s := loop.next_s) is not None)
        for each in self.commands:
            each.fate = each.fate.replace("delay", "")

    def _stop(self, name: str, process: int) -> None:
        if name == "leave":
            number = next(self._staying(process))
            self.left.add(number)
            self.callers[number][1].cancel()
        elif name == "kill":
            self.loops[process].is_dead = True
        else:
            self.loops[process].paused_until_s = self.now + PAUSE_S

    def finish(self) -> None:
        """Cancel what is left, so that no coroutine is destroyed while it waits. Call it at the end of every run."""
        self.is_over = True
        for loop in self.loops:
            loop.is_dead, loop.paused_until_s = False, 0.0
            for task in loop.tasks:
                task.cancel()
        for _ in range(3):
            self.settle()

    def state(self) -> Hashable:
        """Equal for two worlds in which the same can happen."""
        return (
            round(self.now, 6),
            tuple(map(self._state_of, self.loops)),
            tuple((each.process, each.words, each.fate, each.is_late) for each in self.commands),
            tuple(
                sorted((key, value, round(self.redis.expires_s[key], 6)) for key, value in self.redis.values.items())
            ),
            tuple(sorted(self.faults.items())),
            tuple(sorted(self.marks.items())),
            tuple(sorted(self.ended_s.items())),
            tuple(sorted(self.left)),
            self._last,
        )

    def _state_of(self, loop: Loop) -> Hashable:
        timers = sorted(round(when_s, 6) for when_s, _, handle in loop.timers if not handle.cancelled())
        tasks = tuple(_stack(task) for task in loop.tasks if not task.done())
        return loop.is_dead, round(loop.paused_until_s, 6), tuple(timers), len(loop.ready), tasks

    def _carry_out(self, command: Command, *, replies: bool) -> None:
        values, expires_s = dict(self.redis.values), dict(self.redis.expires_s)
        reply = self.redis.execute(*command.words)
        self.check(self, command, values, expires_s)
        loop = self.loops[command.process]
        if replies and not loop.is_dead and not command.is_late:
            # A paused process gets it later.
            loop.call_soon(lambda: command.future.done() or command.future.set_result(reply))

    def _staying(self, process: int) -> Iterator[int]:
        for number, (of, task) in enumerate(self.callers):
            if of == process and not task.done() and number not in self.left:
                yield number

    def _all_ended(self) -> bool:
        return all(task.done() or self.loops[process].is_dead for process, task in self.callers)


W = TypeVar("W", bound=World)


def _stack(task: asyncio.Task[Any]) -> Hashable:
    """Where a task stands: the place in each coroutine, and the plain local values of the cache's."""
    found, waits_for = list[Hashable](), task.get_coro()
    while (frame := getattr(waits_for, "cr_frame", None)) is not None:
        values: Hashable = ()
        if _CODE in frame.f_code.co_filename:
            plain = (int, float, str, bytes, type(None))
            values = tuple((name, value) for name, value in frame.f_locals.items() if isinstance(value, plain))
        found.append((frame.f_code.co_qualname, frame.f_lasti, values))
        waits_for = getattr(waits_for, "cr_await", None)
    return task.get_name() if not found else tuple(found)


def explore(scenario: Callable[[], W], at_the_end: Callable[[W], None]) -> int:
    """Run the world that `scenario` makes in every order; the number of runs. `at_the_end` is called with every world
    in which nothing can happen any more. An AssertionError names the actions that led to it."""
    seen, runs = set[int](), 0  # hashes: states of a hundred thousand take gigabytes
    ways: list[tuple[Action, ...]] = [()]
    while ways:
        way, runs = ways.pop(), runs + 1
        world = scenario()
        try:
            world.settle()
            for action in way:
                world.do(action)
            while (state := hash(world.state())) not in seen:
                seen.add(state)
                actions = world.actions()
                if not actions:
                    at_the_end(world)
                    break
                usual, *others = actions
                ways += [(*world.done, other) for other in others]
                world.do(usual)
        except AssertionError as error:
            steps = ", ".join(f"{name} {at}" for name, at in world.done)
            raise AssertionError(f"{error}\nafter {steps}") from error
        finally:
            world.finish()
    return runs
