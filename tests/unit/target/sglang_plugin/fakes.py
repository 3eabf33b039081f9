"""What the plugin sees of SGLang, as plain values: a tree that counts its locks, requests, a scheduler with a queue."""

from __future__ import annotations

import pickle
import threading
import weakref
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

from presift.core.kv_plan import KvPlan
from presift.core.policies import SpecKv
from presift.target.sglang_plugin.custom_params import KEY
from presift.target.sglang_plugin.ranks import Ranks
from presift.target.sglang_plugin.states import DecodeState

PROMPT_TOKENS, KEPT = 20, 8


@dataclass(eq=False)
class Tree:
    """Each lock gives a receipt, which unlocks its node once."""

    held: dict[int, Any] = field(default_factory=dict)
    taken: int = 0

    def inc_lock_ref(self, node: Any) -> Any:
        self.taken += 1
        receipt = self.taken
        self.held[receipt] = node
        return SimpleNamespace(to_dec_params=lambda: receipt)

    def dec_lock_ref(self, node: Any, receipt: int) -> None:
        assert self.held.pop(receipt) is node

    def evictable_size(self) -> int:
        return 7

    def protected_size(self) -> int:
        return 5


@dataclass(eq=False)
class Request:
    """A request of SGLang's, with the plugin's state on it."""

    rid: str
    state: Any = None
    holds_kv: bool = False
    prefix_indices: list[int] = field(default_factory=list)
    cached_tokens: int = 0
    abort: tuple[str, int, str] | None = None
    skip_radix_cache_insert: bool = False
    priority: int | None = None
    output_ids: list[int] = field(default_factory=list)
    send_token_offset: int = 0
    retraction_count: int = 0
    accepts: int = 100
    to_finish: Any = None
    finished_reason: Any = None
    finished_len: int | None = None

    @property
    def kv(self) -> Any:
        return SimpleNamespace(holds_kv=self.holds_kv, req_pool_idx=0 if self.holds_kv else None)

    @property
    def sampling_params(self) -> Any:
        return SimpleNamespace(custom_params=None if self.state is None else {KEY: self.state})

    def set_finish_with_abort(self, message: str, status_code: int, err_type: str) -> None:
        assert self.abort is None
        self.abort = (message, status_code, err_type)
        self.to_finish = "abort"


@dataclass(eq=False)
class Scheduler:
    """A queue, a tree, and a pool of `max_total_num_tokens` slots."""

    tree_cache: Any = field(default_factory=Tree)
    max_total_num_tokens: int = 1000
    waiting_queue: list[Any] = field(default_factory=list)
    chunked_req: Any = None
    _pending_chunked_abort_req: Any = None
    page_size: int = 1
    schedule_low_priority_values_first: bool = False
    get_num_allocatable_reqs: Any = lambda running_count, running_batch: 100
    token_to_kv_pool_allocator: Any = field(default_factory=lambda: SimpleNamespace(available_size=lambda: 3))
    streamed: list[Any] = field(default_factory=list)
    reasoned: list[Any] = field(default_factory=list)
    tp_group: Any = field(default_factory=lambda: SimpleNamespace(world_size=1))
    server_args: Any = field(default_factory=lambda: SimpleNamespace(nnodes=1))

    @property
    def output_streamer(self) -> Any:
        return SimpleNamespace(stream_output=lambda requests, return_logprob: self.streamed.extend(requests))

    @property
    def batch_result_processor(self) -> Any:
        return SimpleNamespace(_maybe_update_reasoning_tokens=lambda request, tokens: self.reasoned.append(request))


class Selected(SimpleNamespace):
    """What a scoring request has selected. `living` counts them, as memory of the device."""

    living: ClassVar[weakref.WeakSet[Selected]] = weakref.WeakSet()
    __hash__ = object.__hash__

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.living.add(self)


class Queue(list[Any]):
    """A queue that counts how often it is walked."""

    walks = 0

    def __iter__(self) -> Iterator[Any]:
        self.walks += 1
        return super().__iter__()


def compressed(entry: str = "entry", plan: KvPlan | None = None, suffix_tokens: int = 0) -> DecodeState:
    """The state of a request whose prompt is 0..19 and that keeps 8 of it."""
    plan = plan or KvPlan(SpecKv(capacity=KEPT, window=3), lookahead_token_ids=(50, 51))
    return DecodeState(plan, array("q", range(PROMPT_TOKENS)), KEPT, entry, "extra", suffix_tokens)


def caller(rid: str, entry: str = "entry", **state: Any) -> Request:
    return Request(rid, compressed(entry, **state))


def groups_of(size: int) -> list[Any]:
    """SGLang's group of `size` ranks, as each of them sees it. Each calls it in a thread of its own."""
    barrier, told = threading.Barrier(size, timeout=5), [b""] * size

    def group_of(rank: int) -> Any:
        def gather(value: Any) -> list[Any]:
            told[rank] = pickle.dumps(value)
            barrier.wait()
            values = [pickle.loads(each) for each in told]
            barrier.wait()
            return values

        return SimpleNamespace(world_size=size, rank_in_group=rank, all_gather_object=gather)

    return [group_of(rank) for rank in range(size)]


def on_ranks(work: Callable[[int, Ranks], Any], size: int = 2) -> list[Any]:
    """The result of `work` on each of `size` ranks. A rank that does not gather what the others do is an error."""
    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(lambda rank: work(*rank), enumerate(map(Ranks, groups_of(size)))))
