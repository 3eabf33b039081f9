"""The real engine: SGLang's tokenizer manager in this process, its scheduler and detokenizer in child processes.

SGLang's `Engine` would install signal handlers that kill this process, and its `shutdown` would kill every child of it.
So presift starts the receive loop itself, and `processes` ends the children.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncGenerator, Coroutine, Iterable
from contextlib import aclosing
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from presift.core.errors import TargetUnavailable
from presift.core.generation import EngineLoad
from presift.core.plan import ModelInfo
from presift.core.policies import KV_DROPPING_ROUTES, KV_KEEPING_ROUTES
from presift.models.torchvision_ops import declare_missing
from presift.target.engine import Engine, EngineInfo, Event, GenerateRequest
from presift.target.sglang import processes
from presift.target.sglang.arguments import CPU_MAX_RUNNING, SglangOptions, server_arguments, set_environment
from presift.target.sglang.data_parallel_router import DataParallelRouter
from presift.target.sglang.found_parsers import check_names, find
from presift.target.sglang.kv_dropping import of_all, why_unsupported
from presift.target.sglang.messages import AnswerReader, to_sglang
from presift.target.sglang.parsers import NO_PARSERS, Parsers
from presift.target.sglang_plugin.custom_params import KEY
from presift.target.sglang_plugin.sglang_names import engine_name

T = TypeVar("T")

log = logging.getLogger(__name__)


class SglangEngine(Engine):
    """One model on SGLang. Start it in the main thread's event loop: a failing child process sends SIGQUIT."""

    def __init__(self, options: SglangOptions) -> None:
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._death: asyncio.Future[str] = self._loop.create_future()
        self._launching: asyncio.Future[Any] | None = None
        self._receiving: asyncio.Task[None] | None = None
        self._other_children = processes.children()
        # Known after the launch. This process may launch another engine later.
        self._own_children: set[BaseProcess] | None = None
        self._schedulers: processes.ExitWatch | None = None
        self._manager: Any = None
        self._replicas = DataParallelRouter(options.data_parallel)
        self._parsers: Parsers = NO_PARSERS
        self._info: EngineInfo | None = None

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise TargetUnavailable("the engine is not started")
        return self._info

    @property
    def running_requests(self) -> int:
        # SGLang keeps an aborted request in this table until the scheduler has released it.
        return len(self._manager.rid_to_state)

    def load(self) -> EngineLoad | None:
        # Shared memory, empty before the first batch. The scheduler publishes after each prefill, every few decode
        # steps and when it becomes idle. Slots that only the radix cache holds are free.
        loads = self._manager.load_snapshot_reader.read_all()
        if not loads:
            return None
        # One entry per model replica (data parallelism).
        return EngineLoad(
            sum(each.num_running_reqs for each in loads),
            sum(each.num_waiting_reqs for each in loads),
            sum(max(0, each.max_total_num_tokens - each.num_used_tokens) for each in loads),
            sum(each.num_used_tokens for each in loads),
        )

    async def plugin_state(self) -> dict[str, Any]:
        """The plugin's counts over all model replicas: its state and the KV slots of the pools."""
        states = await self._manager.get_internal_state()
        return of_all([dict(state.get(KEY) or {"unsupported": "the plugin is not loaded"}) for state in states])

    async def flush(self) -> bool:
        """Empty the radix cache. False if requests are running."""
        # SGLang reports the result of the first model replica only.
        is_flushed = bool((await self._manager.flush_cache()).success)
        return is_flushed and not (await self.plugin_state()).get("evictable_slots")

    async def start(self) -> None:
        self._loop.add_signal_handler(signal.SIGQUIT, self._set_failed, "a process of the engine failed")
        self._launching = self._loop.run_in_executor(None, self._launch)
        try:
            engine = await asyncio.shield(self._launching)
        except Exception as error:
            raise TargetUnavailable(f"the engine did not start: {type(error).__name__}: {error}") from error
        self._use(engine)
        self._parsers = find(engine, self._options.tool_call_parser)
        self._info = await self._unless_failed(self._describe())

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        if self._death.done():
            raise TargetUnavailable(f"the engine has failed: {self._death.result()}")
        prepared = self._parsers.prepared(request)
        message = to_sglang(request, self._parsers, prepared)
        reader = AnswerReader(request, self._parsers, prepared)
        with self._replicas.chosen(request.token_ids, request.cache_salt) as message.routed_dp_rank:
            # Closing SGLang's generator aborts the request in the scheduler.
            async with aclosing(self._manager.generate_request(message)) as answers:
                async for answer in answers:
                    for event in await _events(reader, answer):
                        yield event

    async def died(self) -> str:
        return await asyncio.shield(self._death)

    async def stop(self) -> None:
        self._set_failed("stopped")
        if self._schedulers:
            self._schedulers.close()
        while self._launching and not self._launching.done():
            self._kill_children()
            await asyncio.wait([self._launching], timeout=0.2)
        engine = self._launching.result() if self._launching and not self._launching.exception() else None
        if engine:
            # It would report the processes that end below as crashed.
            engine.tokenizer_manager._subprocess_watchdog.stop()
        if self._receiving:
            self._receiving.cancel()
        self._kill_children()
        if engine:
            processes.close_sockets(engine)
            processes.remove_files(engine)
        self._loop.remove_signal_handler(signal.SIGQUIT)

    def _launch(self) -> Any:
        set_environment(self._options)
        declare_missing()
        check_names(self._options.tool_call_parser, self._options.reasoning_parser)
        return processes.launch(server_arguments(self._options))

    def _use(self, engine: Any) -> None:
        self._own_children = processes.children() - self._other_children
        # SGLang watches its own children, and with data parallelism the schedulers are children of another process.
        ids = processes.scheduler_ids(self._own_children)
        expected = self._options.tensor_parallel * self._options.data_parallel
        if len(ids) < expected:
            log.warning("%d of %d schedulers are found and watched", len(ids), expected)
        self._schedulers = processes.ExitWatch(ids, lambda: self._set_failed("a scheduler has ended"))
        self._manager = engine.tokenizer_manager
        # Like `auto_create_handle_loop`, but without its signal handlers.
        self._manager.event_loop = self._loop
        self._receiving = self._loop.create_task(self._manager.handle_loop())
        self._receiving.add_done_callback(lambda _: self._set_failed("SGLang's receive loop ended"))

    async def _unless_failed(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`. SGLang would wait without end for a scheduler that has ended: raises TargetUnavailable
        if the engine fails meanwhile."""
        task = self._loop.create_task(work)
        try:
            await asyncio.wait((task, self._death), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise TargetUnavailable(f"the engine did not start: {self._death.result()}")
            return task.result()
        finally:
            task.cancel()

    async def _describe(self) -> EngineInfo:
        from sglang.version import __version__  # noqa: PLC0415 - loaded by now

        folder, config = self._options.folder, self._manager.model_config
        model = ModelInfo(
            id=folder.id,
            revision=folder.revision,
            tokenizer_fingerprint=folder.tokenizer_fingerprint,
            # SGLang reserves a few slots. Within this limit it neither refuses a prompt nor shortens an answer.
            context_tokens=self._manager.max_req_input_len,
            layers=config.num_hidden_layers,
            kv_heads=config.get_total_num_kv_heads(),
            vocabulary_size=config.vocab_size,
        )
        state = await self.plugin_state()
        page_tokens, pool_tokens = state.get("page_tokens", 1), state.get("pool_tokens", 0)
        reason = await self._why_no_kv_dropping()
        routes = (*KV_KEEPING_ROUTES, *(KV_DROPPING_ROUTES if reason is None else ()))
        unsupported = {} if reason is None else dict.fromkeys(KV_DROPPING_ROUTES, reason)
        return EngineInfo(
            engine_name(__version__),
            model,
            routes,
            folder.has_tokenizer,
            unsupported,
            page_tokens,
            pool_tokens,
            tool_call_parser=self._parsers.names.tool_calls,
            reasoning_parser=self._parsers.names.reasoning,
            grammars=folder.has_tokenizer,
            unsupported_seeds=_why_no_seeds(),
            max_running=await self._max_running(),
        )

    async def _max_running(self) -> int:
        """How many requests run at once in all model replicas, by SGLang's own account: it may have chosen it. An
        untested version that does not tell is taken to run as many as on a CPU."""
        states = await self._manager.get_internal_state()
        otherwise = self._options.max_running or CPU_MAX_RUNNING
        found: int = sum(state.get("effective_max_running_requests_per_dp", otherwise) for state in states)
        log.info("at most %d requests run at once", found)
        return found

    async def _why_no_kv_dropping(self) -> str | None:
        if not self._options.kv_dropping:
            return "disabled by the setting kv_dropping"
        reason = await why_unsupported(self)
        if reason is not None:
            log.error("routes %s are not served: %s", ", ".join(KV_DROPPING_ROUTES), reason)
        return reason

    def _set_failed(self, reason: str) -> None:
        if self._death.done():
            return
        log.log(logging.INFO if reason == "stopped" else logging.ERROR, "engine: %s", reason)
        self._death.set_result(reason)
        if self._manager is not None:
            self._fail_running(reason)

    def _fail_running(self, reason: str) -> None:
        from sglang.srt.managers.io_struct import AbortReq  # noqa: PLC0415 - loaded by now

        # The scheduler is gone, so abort them here as it would.
        for rid in list(self._manager.rid_to_state):
            self._manager._handle_abort_req(AbortReq(rid=rid, abort_message=f"the engine has failed: {reason}"))

    def _kill_children(self) -> None:
        own = processes.children() - self._other_children if self._own_children is None else self._own_children
        processes.kill(own)


async def _events(reader: AnswerReader, answer: dict[str, Any]) -> Iterable[Event]:
    """The events of a message. All requests share the event loop, so what takes long is read in a thread."""
    if not reader.takes_long(answer):
        return reader.events(answer)
    return await asyncio.to_thread(lambda: list(reader.events(answer)))


def _why_no_seeds() -> str:
    from presift.target.sglang import seeds  # noqa: PLC0415 - loads SGLang's scheduler, which is loaded by now

    reason = seeds.why_unsupported()
    if reason is not None:
        log.error("sampling by a seed is refused: %s", reason)
    return reason or ""
