"""The plugin's state of a request, stored on the request itself so that both end together.

It lies in `sampling_params.custom_params`, which SGLang copies onto each request and never sends on from there.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from presift.core.digest import policy_values
from presift.core.kv_plan import KvPlan
from presift.core.spans import merge
from presift.target.sglang_plugin.custom_params import KEY
from presift.target.sglang_plugin.kv_selector import KvSelector
from presift.target.sglang_plugin.new_mentions import NewMentions
from presift.target.sglang_plugin.verified_lookahead import VerifiedLookahead


@dataclass(slots=True)
class Report:
    """What was applied to a request, reported in `meta_info`. Counts in tokens, times in ms.

    `coverage` is that of the last selection, `coverage_min` the lowest. `kv_tokens_peak` and `kv_tokens_mean` are the
    KV tokens of prompt and answer in the request's row, over its decode steps.
    """

    prompt_tokens: int
    kv_tokens: int
    cached_tokens: int
    reused_entry: bool = False
    score_ms: float = 0.0
    publish_ms: float = 0.0
    coverage: float | None = None
    kv_mask: dict[str, Any] | None = None
    renewals: int = 0
    renewals_skipped: int = 0
    accepted_tokens: int = 0
    kv_tokens_peak: int = 0
    kv_tokens_mean: float = 0.0
    coverage_min: float | None = None
    _steps: int = 0

    def __post_init__(self) -> None:
        self.add_coverage(self.coverage)

    def add_coverage(self, coverage: float | None) -> None:
        """Note the coverage of a new selection; None if nothing was scored."""
        self.coverage = coverage
        known = [each for each in (coverage, self.coverage_min) if each is not None]
        self.coverage_min = min(known, default=None)

    def count_step(self, kv_tokens: int) -> None:
        """Count a decode step for which the row holds `kv_tokens`."""
        self._steps += 1
        self.kv_tokens_peak = max(self.kv_tokens_peak, kv_tokens)
        self.kv_tokens_mean += (kv_tokens - self.kv_tokens_mean) / self._steps

    def values(self) -> dict[str, Any]:
        """The report by name of field. Without a decode step, the prompt's KV is all that was held."""
        values = {name: getattr(self, name) for name in self.__slots__ if not name.startswith("_")}
        held = {} if self._steps else {"kv_tokens_peak": self.kv_tokens, "kv_tokens_mean": float(self.kv_tokens)}
        return values | held


@dataclass(slots=True, eq=False)
class DecodeState:
    """A caller's request that decodes on a compressed entry. `prompt`: the n token ids that the plan covers.

    `kept` is C, the KV pairs per layer and head. `entry` is the entry's namespace in the radix tree. Its key there is
    `prompt[:C]`, which only names the entry: the KV may belong to other prompt tokens.

    While `is_full`, the request still decodes on the full KV. `next_renewal`: from how many generated tokens on its KV
    is selected anew; None for never.
    """

    plan: KvPlan
    prompt: array[int]
    kept: int
    entry: str
    # The namespace in which the uncompressed prompt is cached.
    extra_key: str | None
    suffix_tokens: int
    # Its times differ between ranks, and SGLang's checker of their consensus compares requests by their repr.
    report: Report | None = field(default=None, repr=False)
    attempts: int = 0
    is_full: bool = False
    next_renewal: int | None = None
    # The coverage of the last renewal, and whether renewals come sooner because it had fallen.
    renewed_coverage: float | None = None
    is_hurried: bool = False
    mentions: NewMentions = field(init=False)

    def __post_init__(self) -> None:
        self.mentions = NewMentions(self.prompt)

    @property
    def shift(self) -> int:
        """How many KV pairs were dropped before the final prompt token: positions minus KV length."""
        if self.is_full:
            return 0
        return len(self.prompt) - 1 - self.kept

    @property
    def pseudo_key(self) -> array[int]:
        """The tokens that name the entry in the radix tree."""
        return self.prompt[: self.kept]

    def record_reuse(self, cached_tokens: int, coverage: float | None) -> None:
        """Report that the entry was in the tree."""
        self.report = self._report(cached_tokens, reused_entry=True, coverage=coverage)

    def record_build(
        self,
        cached_tokens: int,
        *,
        score_ms: float = 0.0,
        publish_ms: float = 0.0,
        coverage: float | None = None,
        kv_mask: dict[str, Any] | None = None,
    ) -> None:
        """Report that the entry was built for this request; the arguments as in Report."""
        if self.report is None:
            self.report = self._report(cached_tokens)
        # Otherwise the entry was evicted after the answer had begun. What happened until then stays reported.
        report = self.report
        report.cached_tokens, report.reused_entry, report.kv_mask = cached_tokens, False, kv_mask
        report.score_ms += score_ms
        report.publish_ms += publish_ms
        report.add_coverage(coverage)

    def record_full(self, cached_tokens: int) -> None:
        """Report that the answer begins on the full KV."""
        self.report = self._report(cached_tokens)

    def record_renewal(self, *, coverage: float | None, score_ms: float, publish_ms: float) -> None:
        """Report that KV was selected anew."""
        assert self.report is not None
        self.report.renewals += 1
        self.report.kv_tokens = self.held_tokens
        self.report.add_coverage(coverage)
        self.report.score_ms += score_ms
        self.report.publish_ms += publish_ms

    @property
    def held_tokens(self) -> int:
        """The KV tokens of prompt and suffix that the request holds."""
        return len(self.prompt) - self.shift + self.suffix_tokens

    def _report(self, cached_tokens: int, **others: Any) -> Report:
        # Without room for the full KV, the first compression comes at once.
        skipped = int(self.plan.policy.first_full_tokens > 0 and not self.is_full)
        read = len(self.prompt) + self.suffix_tokens
        return Report(read, self.held_tokens, cached_tokens, renewals_skipped=skipped, **others)


@dataclass(slots=True, eq=False)
class ScoringState:
    """The plugin's own request that reads prompt and lookahead to select KV. `selector` None: the plan has a mask.

    For a renewal, `caller` describes what is selected and not the caller's own request, whose state is another.
    `lookahead` None: there is none to verify.
    """

    caller: DecodeState
    # Each rank has its own heads.
    selector: KvSelector | None = field(repr=False)
    is_renewal: bool = False
    # Whether the entry was built or cannot be built.
    is_finished: bool = False
    lookahead: VerifiedLookahead | None = field(default=None, repr=False)

    def reset(self) -> None:
        """Start over, because the prompt is read again."""
        for each in (self.selector, self.lookahead):
            if each is not None:
                each.reset()

    def release(self) -> None:
        """Free the device's memory, because the request has ended for the plugin.

        SGLang's request is part of a reference cycle (`custom_params["__req__"]`), so that it lasts until Python's
        garbage collector runs, and the allocator would not know of memory to collect.
        """
        self.is_finished = True
        self.selector = self.lookahead = None


@dataclass(slots=True, eq=False)
class PassthroughState:
    """A caller's request whose plan drops nothing: SGLang serves it unchanged, the plugin only reports."""

    report: Report


def state_of(request: Any) -> DecodeState | ScoringState | PassthroughState | None:
    """The plugin's state of an SGLang request; None for an ordinary request."""
    parameters = request.sampling_params.custom_params
    state = parameters.get(KEY) if isinstance(parameters, dict) else None
    return state if isinstance(state, DecodeState | ScoringState | PassthroughState) else None


def entry_name(
    plan: KvPlan, prompt: array[int], kept: int, salts: tuple[str | None, ...], engine: tuple[str | None, ...]
) -> str:
    """The namespace of an entry: SHA-256 over everything that its KV depends on, the salts included.

    `engine` says which weights and which code compute it.
    """
    policy = {**policy_values(plan.policy), "mask": None, "lookahead_tokens": 0, "capacity": kept}
    header = {
        "version": 2,
        "engine": engine,
        "policy": policy,
        "protected": [[span.start, span.end] for span in merge(plan.protected)],
        "salts": salts,
        "prompt_tokens": len(prompt),
        "lookahead": len(plan.lookahead_token_ids),
        "mask": None if plan.kv_mask is None else list(plan.kv_mask.kept.shape),
    }
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    digest.update(np.asarray(prompt, dtype="<i8").tobytes())
    digest.update(np.asarray(plan.lookahead_token_ids, dtype="<i8").tobytes())
    if plan.kv_mask is not None:
        digest.update(plan.kv_mask.to_bits())
    return f"presift:{digest.hexdigest()}"
