"""The self-check of a scheduler: whether it drops KV, and correctly. Until it has passed, no request drops KV.

The scheduler answers a few short prompts of the plugin's own, whatever server it belongs to. With all KV kept, the
answer must be the one without a plan. With half of the KV dropped, a second request must find the entry in the radix
cache, with that length and the same answer.

Two answers at the same wrong positions are the same, so the positions past dropped KV have a check of their own. A key
of the first layer depends on its token and position alone. So what a request has written past dropped KV must equal
what an ordinary request writes for the same tokens after the whole prompt. A first layer without rotary positions
shows nothing.

A wrong answer is final. A check that something else interrupts is repeated: at once, later after growing pauses.
"""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import torch

from presift.core.kv_plan import KvPlan, scoring_slots
from presift.core.policies import SpecKv
from presift.target.sglang_plugin.custom_params import KEY
from presift.target.sglang_plugin.entry_builder import EntryBuilder
from presift.target.sglang_plugin.ranks import ALONE, Ranks
from presift.target.sglang_plugin.scoring_request import own_request_id
from presift.target.sglang_plugin.states import DecodeState, Report, entry_name
from presift.target.sglang_plugin.transfers import wait_for_stream
from presift.target.sglang_plugin.validation import engine_identity

_SALT = "presift-selfcheck"
_ANSWER_TOKENS = 4
_WINDOW = 8
_LOOKAHEAD = (1, 2)
_TIMEOUT_S = 180.0
# An answer is cut short if all requests are aborted, and its entry may be evicted. The check starts this many times
# without a pause; after that, calls are refused instead of waiting.
_STARTS_WITHOUT_PAUSE = 3
# Pauses in steps of the scheduler, which every rank of a group counts alike; each is twice the one before.
_FIRST_PAUSE, _LONGEST_PAUSE = 100, 10_000
# The likeliest tokens that are compared at each position.
_LIKELY = 5
# By how much log probabilities may differ between two ways to compute the same. They come from logits of up to about
# 30, and rounding depends on the shapes of a batch: 8 bits of a bfloat16 logit leave 0.06.
_TOLERANCES = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.3}
# By how much keys at the same position may differ, as `key_difference` counts. Rounding to bfloat16 leaves 0.003. A
# shift of 64 positions that is missing makes 0.16 to 0.43, and 0.09 if only a quarter of a head is rotated.
_KEY_TOLERANCE = 0.07

log = logging.getLogger(__name__)


class _CheckFailed(Exception):
    """The engine gave a wrong answer; the message says which."""


class _Interrupted(Exception):
    """Something else ended an answer; the message says what."""


class _Late(_Interrupted):
    """An answer takes too long. Its request is still in the scheduler."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A greedy answer: its tokens, the log probabilities of the likeliest tokens at each position, and its report.

    `keys`: those of the first layer in the request's row, as `row_keys` reads them before the answer is complete.
    """

    tokens: tuple[int, ...]
    likely: tuple[dict[int, float], ...]
    report: Report | None
    keys: torch.Tensor | None = None


_Checks = Generator[Any, Answer, None]


class SelfCheck:
    """The self-check of one scheduler, in small steps between the scheduler's own.

    `reason` says why no KV may be dropped: None after the check has passed. `is_running`: calls wait for the result.
    After too many interruptions they are refused instead, until a later repetition passes.
    """

    def __init__(self, scheduler: Any, builder: EntryBuilder, ranks: Ranks = ALONE) -> None:
        self.reason: str | None = "the self-check is running"
        self.is_running = True
        self._scheduler = scheduler
        self._builder = builder
        self._ranks = ranks
        self._parked: list[tuple[Any, dict[str, Any]]] = []
        self._interruptions = 0
        # None once there is a result.
        self._checks: _Checks | None = self._check()
        # The request that the check waits for. After an interruption it may still be in the scheduler.
        self._current: Any = None
        self._keys: torch.Tensor | None = None
        self._deadline_s = 0.0
        self._is_paused = False
        # Steps until the check is repeated, and the next such pause.
        self._pause, self._next_pause = 0, _FIRST_PAUSE

    def park(self, received: Any, arguments: dict[str, Any]) -> None:
        """Keep a call of `handle_generate_request` until the check has ended."""
        self._parked.append((received, arguments))

    def handle_parked(self, prefix: str = "") -> None:
        """Make the calls that wait, of request ids that start with `prefix`."""
        calls = [call for call in self._parked if call[0].rid.startswith(prefix)]
        self._parked = [call for call in self._parked if not call[0].rid.startswith(prefix)]
        for received, arguments in calls:
            self._scheduler.handle_generate_request(received, **arguments)

    def abort_parked(self, prefix: str) -> None:
        """Put calls that wait into SGLang's queue as ordinary requests, because SGLang looks there for aborted ones."""
        for received, _ in self._parked:
            if received.rid.startswith(prefix):
                received.sampling_params.custom_params = None
        self.handle_parked(prefix)

    def without_own(self, requests: Any) -> Any:
        """`requests` without the check's own, whose answers no client reads."""
        if self._current is None:
            return requests
        if self._current.finished():
            # SGLang streams it once more after the check has gone on, and then leaves it out itself.
            self._current.finished_output = True
        return [request for request in requests if request is not self._current]

    def step(self) -> None:
        """Go on if the answer that the check waits for is complete. Errors of the check are its result."""
        if self._checks is None:
            return
        try:
            self._advance(self._checks)
        except StopIteration:
            self._end(None)
        except _CheckFailed as error:
            self._end(f"the self-check failed: {error}")
        except _Interrupted as error:
            self._interrupt(str(error), retry_now=not isinstance(error, _Late))
        except Exception as error:
            # The other routes are served in any case.
            log.exception("presift: the self-check failed")
            self._interrupt(type(error).__name__)

    def _advance(self, checks: _Checks) -> None:
        request = self._current
        if self._is_paused:
            self._pause -= 1
            if self._pause <= 0 and (request is None or request.finished() or not self._is_in_scheduler(request)):
                self._is_paused = False
                self._run(self._agreed(lambda: next(checks)))
        elif request is None:
            self._run(self._agreed(lambda: next(checks)))
        elif request.finished():
            self._run(self._agreed(lambda: checks.send(_answer(request, self._keys))))
        elif not self._is_in_scheduler(request):
            raise _Interrupted("a request was aborted, or refused because the queue was full")
        elif any(self._ranks.gather(time.monotonic() > self._deadline_s)):
            raise _Late(f"no answer within {_TIMEOUT_S:.0f} s")
        elif len(request.output_ids) > 1 and request.kv.holds_kv:
            # Its slots may have other KV as soon as it has ended.
            self._keys = self._agreed(lambda: row_keys(self._scheduler, request))

    def _agreed(self, work: Callable[[], Any]) -> Any:
        """The result of `work`, which raises on every rank if it does on one."""
        result, own = None, None
        try:
            result = work()
        except (StopIteration, _CheckFailed, _Interrupted) as error:
            own = error
        except Exception as error:
            log.exception("presift: the self-check failed")
            own = _Interrupted(type(error).__name__)
        errors = [error for error in self._ranks.gather(own) if error is not None]
        if errors:
            # The check has passed where all ranks say so.
            raise next((error for error in errors if not isinstance(error, StopIteration)), errors[0])
        return result

    def _run(self, request: Any) -> None:
        self._current, self._keys = request, None
        self._deadline_s = time.monotonic() + _TIMEOUT_S
        self._scheduler._add_request_to_queue(request)

    def _is_in_scheduler(self, request: Any) -> bool:
        """Whether it may still be answered: it waits, for its entry or in the queue, or runs. SGLang forgets a request
        that is aborted in its queue, or for which the queue has no room."""
        waiting = (self._scheduler.waiting_queue, *(build.waiting for build in self._builder.builds.values()))
        return bool(request.kv.holds_kv) or any(each is request for queue in waiting for each in queue)

    def _interrupt(self, why: str, *, retry_now: bool = True) -> None:
        """Begin again: in the next step, or after a pause, for which no calls wait."""
        self._interruptions += 1
        self._checks, self._is_paused = self._check(), True
        if self._interruptions < _STARTS_WITHOUT_PAUSE and retry_now:
            return
        self._pause, self._next_pause = self._next_pause, min(_LONGEST_PAUSE, 2 * self._next_pause)
        self.reason = f"the self-check was interrupted and will be repeated: {why}"
        log.warning("presift: KV is not dropped yet: %s", self.reason)
        self._stop_waiting()

    def _end(self, reason: str | None) -> None:
        self._checks, self.reason = None, reason
        if reason is not None:
            log.error("presift: KV is not dropped: %s", reason)
        else:
            self._current = None
            if not self.is_running:
                log.warning("presift: KV is dropped from now on: the self-check has passed")
        self._stop_waiting()

    def _stop_waiting(self) -> None:
        self.is_running = False
        self.handle_parked()

    def _check(self) -> _Checks:
        page_tokens, vocabulary_size = self._scheduler.page_size, self._scheduler.model_config.vocab_size
        # All but the last token fill whole pages, so that the radix cache can hold them.
        kept = -(-64 // page_tokens) * page_tokens * 2
        self._require_room(kept + 1, kept)
        first_token = 1 + self._interruptions
        prompt = array("q", [(place * 7 + first_token) % vocabulary_size for place in range(kept + 1)])
        yield self._request(prompt)
        # The second request reads only its last token on cached KV, as a compressed one does: the same arithmetic.
        ordinary = yield self._request(prompt)
        everything = yield self._request(prompt, kept)
        held = _report(everything)
        _require(held.kv_tokens == kept + 1, f"{held.kv_tokens} KV tokens were held, expected {kept + 1}")
        _require(self._agree(ordinary, everything), "with all KV kept, the answer differs from the one without a plan")
        half = kept // 2
        first = yield self._request(prompt, half)
        again = yield self._request(prompt, half)
        found = _report(again)
        if not (found.reused_entry and found.cached_tokens == half):
            # It may have been evicted.
            raise _Interrupted(f"the second request found {found.cached_tokens} cached tokens, expected {half}")
        _require(self._agree(first, again), "the same entry gave a different answer")
        answered = array("q", again.tokens[: _ANSWER_TOKENS - 2])
        after = yield self._request(prompt + answered)
        _check_positions(_keys(again, half), _keys(after, kept))

    def _require_room(self, prompt_tokens: int, kept: int) -> None:
        """SGLang would never admit a request that does not fit, and would wait at the head of its queue for ever."""
        needed, most = prompt_tokens + 2 * _ANSWER_TOKENS, self._scheduler.max_req_len
        _require(needed < most, f"it needs a context of more than {needed} tokens, {most} fit")
        slots = scoring_slots(prompt_tokens + len(_LOOKAHEAD), kept, self._scheduler.page_size) + _ANSWER_TOKENS
        pool = self._scheduler.max_total_num_tokens
        _require(slots < pool, f"it needs more than {slots} KV slots, the pool has {pool}")

    def _request(self, prompt: array[int], kept: int | None = None) -> Any:
        state = None
        if kept is not None:
            plan = KvPlan(SpecKv(capacity=kept, window=_WINDOW), lookahead_token_ids=_LOOKAHEAD)
            entry = entry_name(plan, prompt, kept, (None, _SALT), engine_identity(self._scheduler))
            state = DecodeState(plan, prompt, kept, entry, None, 0)
        return checking_request(self._scheduler, prompt, state)

    def _agree(self, one: Answer, other: Answer) -> bool:
        kind = self._scheduler.token_to_kv_pool_allocator.get_kvcache().dtype
        return agree(one, other, _TOLERANCES.get(kind, _TOLERANCES[torch.bfloat16]))


def agree(one: Answer, other: Answer, tolerance: float) -> bool:
    """Whether two answers are the same but for rounding: log probabilities differ by at most `tolerance`, up to the
    first position at which two tokens are so close that either may be chosen.
    """
    for token, likely, its_token, its_likely in zip(one.tokens, one.likely, other.tokens, other.likely, strict=True):
        for each in {token, its_token} | (likely.keys() & its_likely.keys()):
            if each not in likely or each not in its_likely or abs(likely[each] - its_likely[each]) > tolerance:
                return False
        if token != its_token:
            # From here on the answers have other beginnings.
            return True
    return True


def checking_request(scheduler: Any, prompt: array[int], state: DecodeState | None) -> Any:
    """An SGLang Req of the check, greedy and with log probabilities; with a `state` it decodes on its entry."""
    from sglang.srt.managers.schedule_batch import Req  # noqa: PLC0415 - in the scheduler alone
    from sglang.srt.sampling.sampling_params import SamplingParams  # noqa: PLC0415

    sampling = SamplingParams(max_new_tokens=_ANSWER_TOKENS, temperature=0.0, ignore_eos=True)
    sampling.normalize(None)
    sampling.custom_params = None if state is None else {KEY: state}
    request = Req(
        own_request_id(),
        "",
        prompt if state is None else state.pseudo_key + prompt[-1:],
        sampling,
        return_logprob=True,
        top_logprobs_num=_LIKELY,
        eos_token_ids=scheduler.model_config.hf_eos_token_id,
        vocab_size=scheduler.model_config.vocab_size,
        extra_key=None if state is None else state.entry,
        cache_salt=_SALT,
    )
    request.tokenizer = scheduler.tokenizer
    # Log probabilities of the answer only.
    request.logprob_start_len = len(request.origin_input_ids)
    return request


def row_keys(scheduler: Any, request: Any) -> torch.Tensor:
    """The keys of the first layer in a running request's row: float32[tokens, heads * d], without the newest token's,
    which the next step computes."""
    keys: torch.Tensor = scheduler.token_to_kv_pool_allocator.get_kvcache().get_key_buffer(0)
    tokens = len(request.origin_input_ids) + len(request.output_ids) - 1
    slots = scheduler.req_to_token_pool.req_to_token[request.kv.req_pool_idx, :tokens].long()
    # A step that writes them may be in flight: an answer may begin with several tokens at once.
    wait_for_stream(scheduler.forward_stream, slots.device)
    return keys[slots].float().flatten(1).cpu()


def key_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """By how much the rows of two tensors [rows, width] differ, from 0 to 1: |a - b| / (|a| + |b|) in the mean over a
    row, and of the rows the most. Each value counts by its own size, as few large ones may hardly be rotated."""
    sizes = (one.abs() + other.abs()).clamp_min(torch.finfo(torch.float32).tiny)
    return float(((one - other).abs() / sizes).mean(dim=-1).max())


def _keys(answer: Answer, first: int) -> torch.Tensor:
    """The keys from `first` in the row on: those of the final prompt token and what follows it."""
    count = _ANSWER_TOKENS - 1
    if answer.keys is None or len(answer.keys) < first + count:
        raise _Interrupted("the keys of an answer were not seen")
    return answer.keys[first : first + count]


def _check_positions(past_dropped: torch.Tensor, after_prompt: torch.Tensor) -> None:
    found = key_difference(past_dropped, after_prompt)
    failure = f"tokens past dropped KV are at wrong positions: their keys differ by {found:.0%} from the right ones"
    _require(found <= _KEY_TOLERANCE, failure)


def _answer(request: Any, keys: torch.Tensor | None) -> Answer:
    tokens = tuple(request.output_ids)
    if len(tokens) < _ANSWER_TOKENS:
        message = getattr(request.finished_reason, "message", None) or "aborted"
        raise _Interrupted(f"an answer ended after {len(tokens)} tokens: {message}")
    values = request.logprob
    tops = zip(values.output_top_logprobs_idx, values.output_top_logprobs_val, strict=True)
    state = (request.sampling_params.custom_params or {}).get(KEY)
    likely = tuple(dict(zip(ids, logprobs, strict=True)) for ids, logprobs in tops)
    return Answer(tokens, likely, None if state is None else state.report, keys)


def _report(answer: Answer) -> Report:
    if answer.report is None:
        raise _CheckFailed("a request with a plan was answered without one")
    return answer.report


def _require(holds: bool, failure: str) -> None:
    if not holds:
        raise _CheckFailed(failure)
