"""Calibration: times a few made-up prompts at start, so that the first predictions rest on observations.

It is optional: it runs in the background, stops at the first request, and logs its errors. Its own salt keeps its cache
entries apart from those of requests. It does not time KV selection.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from presift.core.errors import PresiftError
from presift.core.generation import Sampling
from presift.orchestrator.backends.model_registry import ModelRegistry
from presift.orchestrator.domain.ports import DraftRequest, DraftScorer, Target, TargetInfo, TargetRequest, Usage
from presift.orchestrator.estimation.estimator import CostEstimator
from presift.orchestrator.estimation.perf_model import location_of
from presift.orchestrator.routing.choice import Defaults
from presift.orchestrator.routing.cost_model import TokenWork
from presift.orchestrator.routing.forecast import draft_work
from presift.rpc.deadline import Deadline

PROMPT_TOKENS = (64, 256, 1024)
STEPS = 4

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timing:
    """The time of a stage ("draft", "target", "decoding") at a location."""

    stage: str
    location: str
    work: TokenWork
    took_ms: float


class Calibration:
    """Runs once, for at most `limit_s` seconds."""

    def __init__(
        self,
        draft: DraftScorer,
        target: Target,
        models: ModelRegistry,
        defaults: Defaults,
        estimator: CostEstimator,
        *,
        limit_s: float,
    ) -> None:
        self._draft = draft
        self._target = target
        self._models = models
        self._defaults = defaults
        self._estimator = estimator
        self._limit_s = limit_s
        self._task: asyncio.Task[None] | None = None
        self._is_stopped = False

    def start(self) -> None:
        """Start in the background, unless a request has arrived already."""
        if not self._is_stopped:
            self._task = asyncio.create_task(self._run(), name="calibrate")

    def stop(self) -> None:
        """Abort the calibration, because a request has arrived. What was learned stays."""
        self._is_stopped = True
        if self._task is not None:
            self._task.cancel()

    async def aclose(self) -> None:
        """Stop, and wait for the end."""
        self.stop()
        if self._task is not None:
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        count = 0
        try:
            async with asyncio.timeout(self._limit_s):
                async for timing in self._timings():
                    self._estimator.calibrate(timing.stage, timing.location, [(timing.work, timing.took_ms)])
                    count += 1
        except TimeoutError:
            log.info("calibration was cut short after %.0f s", self._limit_s)
        except Exception as error:  # predictions then start from the seeds
            reason = error.message if isinstance(error, PresiftError) else type(error).__name__
            log.warning("not calibrated to the end: %s", reason)
        finally:
            log.info("calibrated by %d timings", count)

    async def _timings(self) -> AsyncIterator[Timing]:
        target, salt = self._models.target, f"calibration{uuid.uuid4().hex}"
        for tokens in PROMPT_TOKENS:
            if target is None or tokens + STEPS + 1 > target.model.context_tokens:
                return
            ids = np.random.default_rng(tokens).integers(0, self._vocabulary_size(target), tokens, dtype=np.uint32)
            if timing := await self._time_draft(ids):
                yield timing
            for timing in await self._time_target(ids, salt):
                yield timing

    def _vocabulary_size(self, target: TargetInfo) -> int:
        """The number of ids that both models know: a draft of another vocabulary may have fewer."""
        draft, size = self._models.draft, target.model.vocabulary_size
        return size if draft is None else min(size, draft.vocabulary_size or size)

    async def _time_draft(self, ids: NDArray[np.uint32]) -> Timing | None:
        draft, tokens = self._models.draft, int(ids.size)
        defaults = self._defaults.for_draft(draft)
        template = defaults.scoring(defaults.spec_pc.capacity)
        # The draft does not read a prompt that fits the capacity.
        capacity = max(template.window, tokens // 2)
        if draft is None or capacity >= tokens:
            return None
        policy = replace(template, capacity=capacity)
        started = time.perf_counter()
        deadline = Deadline.within(self._limit_s)
        scored = await self._draft.score(DraftRequest(ids, policy, (), ""), deadline)
        took_ms = (time.perf_counter() - started) * 1000 - scored.queue_ms
        return Timing("draft", location_of(draft), draft_work(policy, tokens), took_ms)

    async def _time_target(self, ids: NDArray[np.uint32], salt: str) -> list[Timing]:
        assert self._models.target is not None
        model, sampling = self._models.target.model, Sampling(max_new_tokens=STEPS + 1, ignore_eos=True)
        usage, first, last = None, 0.0, 0.0
        call = self._target.generate(TargetRequest(ids, sampling, salt), Deadline.within(self._limit_s))
        async with aclosing(call.read_ahead()) as events:
            async for event in events:
                last = time.perf_counter()
                first = first or last
                usage = event if isinstance(event, Usage) else usage
        if usage is None or usage.completion_tokens < 2:
            return []
        location = location_of(model, usage.replica)
        step_ms = (last - first) * 1000 / (usage.completion_tokens - 1)
        return [
            Timing(
                "target", location, TokenWork(int(ids.size) - usage.cached_tokens, usage.cached_tokens), usage.ttft_ms
            ),
            Timing("decoding", location, TokenWork(usage.kv_tokens), step_ms),
        ]
