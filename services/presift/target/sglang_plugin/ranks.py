"""The ranks of tensor parallelism. Each runs the same scheduler on the same requests, and holds its own KV heads.

They stay in step only if the plugin decides the same on all of them. What one rank alone may know (its heads, its
clock, its errors) is exchanged before a decision. All ranks must call `gather` at the same point of the same step.
"""

from __future__ import annotations

from typing import Any


class Ranks:
    """The ranks of one scheduler's model. `group`: SGLang's GroupCoordinator of them; None for a single rank."""

    def __init__(self, group: Any = None) -> None:
        self._group = None if group is None or group.world_size == 1 else group

    @classmethod
    def of(cls, scheduler: Any) -> Ranks:
        """The ranks of `scheduler`. On several nodes, which are not supported, each is alone: the plugin may be off on
        another node, and would never answer.
        """
        return cls(scheduler.tp_group if scheduler.server_args.nnodes == 1 else None)

    @property
    def are_several(self) -> bool:
        """Whether there is more than one rank."""
        return self._group is not None

    @property
    def own(self) -> int:
        """The place of this rank among them."""
        return 0 if self._group is None else int(self._group.rank_in_group)

    def gather(self, value: Any) -> list[Any]:
        """The `value` of every rank, in their order. It is pickled, and goes over the CPU."""
        values: list[Any] = [value] if self._group is None else self._group.all_gather_object(value)
        return values

    def own_heads(self, heads: int) -> slice:
        """Which of a model's `heads` this rank has; all if there is one for all ranks."""
        if self._group is None or heads == 1:
            return slice(None)
        share = heads // self._group.world_size
        return slice(self.own * share, (self.own + 1) * share)


ALONE = Ranks()
