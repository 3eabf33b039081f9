"""The KV plan: which KV pairs of a prompt the target keeps, and how it selects them (SpecKV, paper section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from presift.core.errors import BudgetExceeded, InvalidRequest
from presift.core.masks import KvMask
from presift.core.policies import KvSelection, SpecKv
from presift.core.spans import Span, check_within, must_keep_kv

# The cost grows with width x prompt: a wider kernel would stall all other requests.
MAX_KERNEL_TOKENS = 1025


@dataclass(frozen=True, slots=True)
class KvPlan:
    """`protected` are spans of the prompt. TARGET_LOOKAHEAD selects by `lookahead_token_ids`, DRAFT_MASK by `kv_mask`.

    `prompt_tokens` is how many of a request's tokens the plan covers, 0 for all; the rest is read in full.
    `keep_full_prefix` leaves the KV of the whole prompt in the radix cache; `report_kept` requests the kept pairs.
    Raises InvalidRequest.
    """

    policy: SpecKv
    protected: tuple[Span, ...] = ()
    lookahead_token_ids: tuple[int, ...] = ()
    kv_mask: KvMask | None = None
    keep_full_prefix: bool = True
    prompt_tokens: int = 0
    report_kept: bool = False

    def __post_init__(self) -> None:
        if self.policy.kernel > MAX_KERNEL_TOKENS:
            raise InvalidRequest("spec_kv.kernel", self.policy.kernel, f"<= {MAX_KERNEL_TOKENS}")
        if self.policy.adaptive is not None:
            raise InvalidRequest("kv_plan.policy.adaptive", "set", "unset: the draft resolves it before")
        wanted = self.policy.selection is KvSelection.DRAFT_MASK
        if wanted != (self.kv_mask is not None):
            limit = "set" if wanted else "unset"
            state = "unset" if wanted else "set"
            raise InvalidRequest("kv_plan.kv_mask", state, f"{limit} with selection {self.policy.selection}")
        if wanted and self.lookahead_token_ids:
            raise InvalidRequest("kv_plan.lookahead_token_ids", "set", "empty with selection draft_mask")
        if len(self.lookahead_token_ids) > self.policy.lookahead_tokens:
            raise InvalidRequest(
                "kv_plan.lookahead_token_ids",
                f"{len(self.lookahead_token_ids)} tokens",
                f"<= {self.policy.lookahead_tokens}, the policy's lookahead_tokens",
            )
        if self.policy.renews:
            self._check_renewal()

    def _check_renewal(self) -> None:
        """Renewal selects from the full prefix, by the answer's own tokens, and changes what is kept."""
        if not self.keep_full_prefix:
            raise InvalidRequest("kv_plan.keep_full_prefix", "false", "true with renew_every or first_full_tokens")
        if self.report_kept:
            raise InvalidRequest("kv_plan.report_kept", "true", "false with renew_every or first_full_tokens")
        if self.policy.first_full_tokens and (self.lookahead_token_ids or self.kv_mask is not None):
            raise InvalidRequest("kv_plan", "a lookahead or a mask", "neither with first_full_tokens")

    def covered_tokens(self, token_count: int) -> int:
        """How many of a request's `token_count` tokens are the prompt. Raises InvalidRequest if there are fewer."""
        if self.prompt_tokens > token_count:
            raise InvalidRequest("kv_plan.prompt_tokens", self.prompt_tokens, f"<= {token_count}, the tokens sent")
        return self.prompt_tokens or token_count

    def held_tokens(self, read_tokens: int) -> int:
        """KV tokens held while decoding, after `read_tokens` were read: the kept pairs, the final covered token, and
        everything after it.
        """
        prompt_tokens = self.covered_tokens(read_tokens)
        return min(self.policy.capacity, prompt_tokens - 1) + 1 + read_tokens - prompt_tokens

    def must_keep(self, prompt_tokens: int) -> NDArray[np.bool_]:
        """bool[prompt_tokens - 1]: the KV of protected spans and window, see `must_keep_kv`."""
        return must_keep_kv(self.protected, prompt_tokens, self.policy.window)

    def capacity_for(self, page_tokens: int) -> int:
        """The KV pairs per layer and head, in whole pages. Raises InvalidRequest if only the window fits."""
        capacity = self.policy.capacity // page_tokens * page_tokens
        if capacity <= self.policy.window:
            limit = f"> window ({self.policy.window}) in whole pages of {page_tokens}"
            raise InvalidRequest("spec_kv.capacity", self.policy.capacity, limit)
        return capacity


def check_plan(plan: KvPlan, prompt_tokens: int, *, layers: int, kv_heads: int, page_tokens: int = 1) -> int:
    """How many KV pairs per layer and head `plan` keeps of a prompt; `prompt_tokens` - 1 or more means all.

    Raises InvalidRequest if the plan does not fit the prompt or the model, BudgetExceeded if window and protected spans
    alone exceed the capacity.
    """
    check_within(plan.protected, prompt_tokens)
    capacity = plan.capacity_for(page_tokens)
    if prompt_tokens <= capacity:
        return prompt_tokens - 1
    fixed = plan.must_keep(prompt_tokens)
    if plan.kv_mask is None:
        kept = capacity
        _check_fixed(fixed, kept, "the window included")
    else:
        kept = _check_mask(plan.kv_mask, fixed, capacity, (layers, kv_heads), page_tokens)
    if plan.policy.renews:
        renewed = must_keep_kv(plan.protected, prompt_tokens, plan.policy.renew_window)
        _check_fixed(renewed, kept, "the renew_window included")
    return kept


def scoring_slots(read_tokens: int, kept: int, page_tokens: int) -> int:
    """The most KV slots that a request needs while it is scored: prompt and lookahead, the compressed entry, and the
    rounding to pages. It must be less than the target's pool.
    """
    return read_tokens + kept + 1 + 2 * page_tokens


def _check_fixed(fixed: NDArray[np.bool_], capacity: int, what: str) -> None:
    if (needed := int(np.count_nonzero(fixed))) > capacity:
        raise BudgetExceeded("protected_spans", needed, f"<= capacity ({capacity}) tokens, {what}")


def _check_mask(mask: KvMask, fixed: NDArray[np.bool_], capacity: int, model: tuple[int, int], page_tokens: int) -> int:
    for axis, size in enumerate(model):
        if mask.kept.shape[axis] not in (1, size):
            raise InvalidRequest("kv_plan.kv_mask", f"shape {mask.kept.shape}", f"1 or {size} on axis {axis}")
    if mask.kept.shape[2] != fixed.size + 1:
        raise InvalidRequest("kv_plan.kv_mask", f"{mask.kept.shape[2]} tokens", f"{fixed.size + 1}, the prompt's")
    kept = mask.kept[:, :, :-1]
    counts = np.unique(np.count_nonzero(kept, axis=2))
    if counts.size != 1:
        raise InvalidRequest("kv_plan.kv_mask", f"{counts[0]}..{counts[-1]} KV pairs per head", "as many in every head")
    count = int(counts[0])
    if count > capacity or count % page_tokens or not count:
        limit = f"1..{capacity} in whole pages of {page_tokens}"
        raise InvalidRequest("kv_plan.kv_mask", f"{count} KV pairs per head", limit)
    if missing := int(np.count_nonzero(fixed & ~kept.all(axis=(0, 1)))):
        raise InvalidRequest("kv_plan.kv_mask", f"{missing} tokens dropped", "protected spans and window kept")
    return count
