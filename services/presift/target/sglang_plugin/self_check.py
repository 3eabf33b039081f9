"""The self-check at start: whether the running engine drops KV, and correctly.

A short prompt with all KV kept must get the same answer as without a plan. With half of the KV dropped, a second
request must find the entry in the radix cache, with that length and the same answer.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol

import numpy as np

from presift.core.answer import AnswerDelta
from presift.core.errors import PresiftError
from presift.core.generation import Sampling
from presift.core.kv_plan import KvPlan
from presift.core.policies import SpecKv
from presift.target.engine import Engine, Finished, GenerateRequest

_SALT = "presift-selfcheck"
_ANSWER_TOKENS = 4
_WINDOW = 8
_TIMEOUT_S = 180.0

log = logging.getLogger(__name__)


class CheckedEngine(Engine, Protocol):
    """An engine that reports the state of its plugin."""

    async def plugin_state(self) -> dict[str, Any]: ...

    async def flush(self) -> bool: ...


class _CheckFailed(Exception):
    """The engine gave a wrong answer; the message says which."""


async def why_unsupported(engine: CheckedEngine, vocabulary_size: int, page_tokens: int) -> str | None:
    """Why the engine cannot serve the routes that drop KV; None if it can. Then the radix cache is empty.

    Never raises: the other routes are served in any case.
    """
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            if reason := (await engine.plugin_state()).get("unsupported"):
                return str(reason)
            await _check(engine, vocabulary_size, page_tokens)
            await engine.flush()
    except (_CheckFailed, PresiftError) as error:
        return f"the self-check failed: {error}"
    except TimeoutError:
        return f"the self-check failed: no answer within {_TIMEOUT_S:.0f} s"
    except Exception as error:
        log.exception("presift: the self-check failed")
        return f"the self-check failed: {type(error).__name__}"
    return None


async def _check(engine: CheckedEngine, vocabulary_size: int, page_tokens: int) -> None:
    # All but the last token fill whole pages, so that the radix cache can hold them.
    kept = -(-64 // page_tokens) * page_tokens * 2
    prompt = (np.arange(kept + 1, dtype=np.uint32) * 7 + 1) % vocabulary_size
    await _answer(engine, prompt)
    # The second request reads only its last token on cached KV, as a compressed one does: the same arithmetic.
    ordinary, _ = await _answer(engine, prompt)
    everything, held = await _answer(engine, prompt, _plan(kept))
    _require(held.kv_tokens == kept + 1, f"{held.kv_tokens} KV tokens were held, expected {kept + 1}")
    _require(everything == ordinary, "with all KV kept, the answer differs from the one without a plan")
    half = kept // 2
    first, _ = await _answer(engine, prompt, _plan(half))
    again, found = await _answer(engine, prompt, _plan(half))
    _require(
        found.reused_entry and found.cached_tokens == half,
        f"the second request found {found.cached_tokens} cached tokens, expected {half}",
    )
    _require(first == again, "the same entry gave a different answer")


def _plan(capacity: int) -> KvPlan:
    return KvPlan(SpecKv(capacity=capacity, window=_WINDOW), lookahead_token_ids=(1, 2))


async def _answer(engine: Engine, prompt: Any, plan: KvPlan | None = None) -> tuple[list[int], Finished]:
    sampling = Sampling(max_new_tokens=_ANSWER_TOKENS, ignore_eos=True)
    tokens: list[int] = []
    async for event in engine.generate(GenerateRequest(prompt, sampling, _SALT, plan)):
        if isinstance(event, AnswerDelta):
            tokens.extend(event.token_ids)
        else:
            return tokens, event
    raise _CheckFailed("the stream ended without a result")


def _require(holds: bool, failure: str) -> None:
    if not holds:
        raise _CheckFailed(failure)
