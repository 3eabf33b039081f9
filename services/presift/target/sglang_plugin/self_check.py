"""The check at start: does this engine really drop KV, and rightly? Asked of the running engine, not of its code.

A tiny prompt of which all KV is kept must be answered like its ordinary twin; one of which half is dropped must be
found again as an entry of that length.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol

import numpy as np

from presift.core.errors import PresiftError
from presift.core.generation import Sampling
from presift.core.kv_plan import KvPlan
from presift.core.policies import SpecKv
from presift.target.engine import Engine, Finished, GenerateRequest, Tokens

_SALT = "presift-selfcheck"
_ANSWER_TOKENS = 4
_WINDOW = 8
_PATIENCE_S = 180.0

log = logging.getLogger(__name__)


class CheckedEngine(Engine, Protocol):
    """An engine that can say how its plugin is."""

    async def plugin_state(self) -> dict[str, Any]: ...

    async def flush(self) -> bool: ...


class _Failed(Exception):
    """The engine answered, but not as it must; the message says what."""


async def why_unsupported(engine: CheckedEngine, vocabulary_size: int, page_tokens: int) -> str | None:
    """The reason why route spec_kv cannot be served; None if it can, and then the radix cache is empty. Never raises:
    the other routes are served all the same.
    """
    try:
        async with asyncio.timeout(_PATIENCE_S):
            if reason := (await engine.plugin_state()).get("unsupported"):
                return str(reason)
            await _canary(engine, vocabulary_size, page_tokens)
            await engine.flush()
    except (_Failed, PresiftError) as error:
        return f"the canary failed: {error}"
    except TimeoutError:
        return f"the canary failed: no answer within {_PATIENCE_S:.0f} s"
    except Exception as error:
        log.exception("presift: the canary failed")
        return f"the canary failed: {type(error).__name__}"
    return None


async def _canary(engine: CheckedEngine, vocabulary_size: int, page_tokens: int) -> None:
    # All but the last token fill whole pages, so that the radix cache can hold them.
    kept = -(-64 // page_tokens) * page_tokens * 2
    prompt = (np.arange(kept + 1, dtype=np.uint32) * 7 + 1) % vocabulary_size
    await _answer(engine, prompt)
    # The twin reads its last token alone, on cached KV, as the compressed one does: the same arithmetic.
    ordinary, _ = await _answer(engine, prompt)
    everything, held = await _answer(engine, prompt, _plan(kept))
    _require(held.kv_tokens == kept + 1, f"{held.kv_tokens} KV tokens were held where {kept + 1} were to be kept")
    _require(everything == ordinary, "with all KV kept, the answer is not the ordinary one")
    half = kept // 2
    first, _ = await _answer(engine, prompt, _plan(half))
    again, found = await _answer(engine, prompt, _plan(half))
    _require(found.reused_entry and found.cached_tokens == half, f"{found.cached_tokens} tokens cached, not {half}")
    _require(first == again, "the same entry gave another answer")


def _plan(capacity: int) -> KvPlan:
    return KvPlan(SpecKv(capacity=capacity, window=_WINDOW), lookahead_token_ids=(1, 2))


async def _answer(engine: Engine, prompt: Any, plan: KvPlan | None = None) -> tuple[list[int], Finished]:
    sampling = Sampling(max_new_tokens=_ANSWER_TOKENS, ignore_eos=True)
    tokens: list[int] = []
    async for event in engine.generate(GenerateRequest(prompt, sampling, _SALT, plan)):
        if isinstance(event, Tokens):
            tokens.extend(event.token_ids)
        else:
            return tokens, event
    raise _Failed("the stream ended early")


def _require(holds: bool, failure: str) -> None:
    if not holds:
        raise _Failed(failure)
