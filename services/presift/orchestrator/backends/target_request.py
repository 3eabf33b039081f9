"""A request to a target, and its message."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from presift.core.answer import AnswerFormat
from presift.core.generation import Sampling
from presift.core.kv_plan import KvPlan
from presift.rpc import answer_codec, codec
from presift.rpc.large_input import in_thread_if_large
from presift.v1 import target_pb2


@dataclass(frozen=True, slots=True, eq=False)
class TargetRequest:
    """What a target is to generate; `token_ids` uint32[tokens]."""

    token_ids: NDArray[np.uint32]
    sampling: Sampling
    cache_salt: str
    kv_plan: KvPlan | None
    answer_format: AnswerFormat | None = None

    async def to_wire(self) -> target_pb2.TargetServiceGenerateRequest:
        """The message. A million tokens take 60 ms."""
        mask = None if self.kv_plan is None else self.kv_plan.kv_mask
        size = self.token_ids.nbytes + (0 if mask is None else mask.kept.nbytes)
        return await in_thread_if_large(size, self._message)

    def _message(self) -> target_pb2.TargetServiceGenerateRequest:
        plan, wanted = self.kv_plan, self.answer_format
        return target_pb2.TargetServiceGenerateRequest(
            token_ids=self.token_ids.tolist(),
            sampling=answer_codec.sampling_to_wire(self.sampling),
            cache_salt=self.cache_salt,
            kv_plan=None if plan is None else codec.kv_plan_to_wire(plan),
            format=None if wanted is None else answer_codec.format_to_wire(wanted),
        )
