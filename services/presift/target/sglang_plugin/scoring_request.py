"""The plugin's own request: it reads a caller's prompt and lookahead so that KV can be selected."""

from __future__ import annotations

import itertools
from array import array
from typing import Any

import torch

from presift.target.sglang_plugin.custom_params import KEY
from presift.target.sglang_plugin.kv_selector import KvSelector
from presift.target.sglang_plugin.states import DecodeState, ScoringState
from presift.target.sglang_plugin.verified_lookahead import VerifiedLookahead

_numbers = itertools.count()


def own_request_id() -> str:
    """A new id for a request of the plugin's own, the same on all ranks, because rank 0 aborts by id on all of them."""
    # Of one length, because SGLang aborts every request whose id begins with the given one.
    return f"presift-{next(_numbers):016x}"


def scoring_request(scheduler: Any, request: Any, state: DecodeState, *, is_renewal: bool = False) -> Any:
    """An SGLang Req that reads the prompt and the lookahead of `state`, in the ordinary namespace of `request`."""
    from sglang.srt.managers.schedule_batch import Req  # noqa: PLC0415 - in the scheduler alone
    from sglang.srt.sampling.sampling_params import SamplingParams  # noqa: PLC0415

    # max_new_tokens 0 is SGLang's "prefill only". It samples nothing, but SGLang merges it into the caller's batch, and
    # samples a batch of greedy requests alone in a shorter way.
    same = {name: getattr(request.sampling_params, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    sampling = SamplingParams(max_new_tokens=0, **same)
    sampling.normalize(None)
    lookahead = state.plan.lookahead_token_ids
    verified = VerifiedLookahead(len(state.prompt) - 1, lookahead) if lookahead else None
    scored = ScoringState(state, selector_of(scheduler, state), is_renewal, lookahead=verified)
    sampling.custom_params = {KEY: scored}
    scoring = Req(
        own_request_id(),
        "",
        state.prompt + array("q", lookahead),
        sampling,
        eos_token_ids=request.eos_token_ids,
        vocab_size=request.vocab_size,
        priority=request.priority,
        extra_key=state.extra_key,
        cache_salt=request.cache_salt,
        http_worker_ipc=request.http_worker_ipc,
    )
    scoring.tokenizer = scheduler.tokenizer
    scoring.logprob_start_len = -1
    scoring.skip_radix_cache_insert = not state.plan.keep_full_prefix
    # The caller's, because a limit on the waiting time and a policy that prefers long waits count from its arrival.
    scoring.time_stats.wait_queue_entry_time = request.time_stats.wait_queue_entry_time
    scoring.arrival_processed_tokens = request.arrival_processed_tokens
    return scoring


def selector_of(scheduler: Any, state: DecodeState) -> KvSelector | None:
    """What selects the KV of a request; None if its plan brings a mask."""
    plan, prompt_tokens = state.plan, len(state.prompt)
    if plan.kv_mask is not None:
        return None
    prefix = prompt_tokens - 1 - plan.policy.window
    return KvSelector(
        plan.policy,
        prompt_tokens,
        len(plan.lookahead_token_ids),
        state.kept,
        scheduler.model_config.num_hidden_layers,
        torch.from_numpy(plan.must_keep(prompt_tokens)[:prefix]),
        reports_mask=plan.report_kept,
    )
