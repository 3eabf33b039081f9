"""The draft's messages: requests and answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from presift.core.errors import InvalidRequest
from presift.core.plan import CompressedPrompt, SpanRef
from presift.orchestrator.backends.measured import milliseconds
from presift.orchestrator.domain.ports import DraftRequest, MaskRejected, Score
from presift.rpc import codec
from presift.v1 import draft_pb2


def score_to_wire(request: DraftRequest) -> draft_pb2.ScoreRequest:
    """The message. Many tokens take long: use a thread for them."""
    return draft_pb2.ScoreRequest(
        token_ids=request.token_ids.tolist(),
        policy=codec.policy_to_wire(request.policy),
        protected_spans=codec.spans_to_wire(request.protected),
        include_importance=request.include_importance,
        cache_salt=request.salt,
    )


def score_from_wire(reply: draft_pb2.ScoreResponse, made_in: SpanRef | None = None) -> Score:
    """`made_in` is the span of the call. Raises MaskRejected if the answer cannot be used."""
    has_count = reply.HasField("kv_capacity")
    try:
        prompt = CompressedPrompt(
            mask=codec.token_mask_from_wire(reply.token_mask),
            lookahead_token_ids=tuple(reply.lookahead_token_ids),
            coverage=reply.coverage if reply.HasField("coverage") else None,
            draft=codec.model_from_wire(reply.model),
            made_in=made_in,
            kv_capacity=reply.kv_capacity if has_count else None,
            kv_coverage=reply.kv_coverage if has_count and reply.HasField("kv_coverage") else None,
        )
    except InvalidRequest as error:  # the draft is at fault, not the caller
        raise MaskRejected(f"the draft's answer: {error.message}") from error
    tokens = prompt.mask.prompt_tokens
    importance, mass = _values("importance", reply.importance, tokens), _values("mass", reply.mass, tokens)
    return Score(prompt, importance, mass, milliseconds(reply.timings.queue_ms), min(reply.cached_tokens, tokens))


def _values(name: str, values: Sequence[float], prompt_tokens: int) -> NDArray[np.float32] | None:
    """float32[prompt_tokens], None if there are none. Raises MaskRejected."""
    if values and len(values) != prompt_tokens:
        raise MaskRejected(f"{name} of {len(values)} tokens for a prompt of {prompt_tokens}")
    return np.fromiter(values, dtype=np.float32) if values else None
