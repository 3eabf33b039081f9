"""The cache key of a compressed prompt: SHA-256 over a canonical form of everything that changes the value.

The canonical form is JSON with sorted keys and no white space, then the token ids as little-endian uint32. It has the
schema version: raise SCHEMA_VERSION whenever the meaning of a value changes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from presift.core.plan import ModelInfo
from presift.core.policies import Policy
from presift.core.spans import Span, merge

SCHEMA_VERSION = 1
# Fields that were added later, with the values at which they change nothing.
_NEUTRAL = (("adaptive", None), ("heads", "all"))
# Fields that say what the target does while it generates. They change neither a compressed prompt nor the first entry.
_WHILE_GENERATING = frozenset(("renew_every", "renew_window", "first_full_tokens"))


@dataclass(frozen=True, slots=True, eq=False)
class PromptKey:
    """Everything that a compressed prompt depends on. `token_ids`: uint32[prompt_tokens]; `salt` is the tenant's.

    `target_fingerprint` is set if the token ids are the target's and the draft has another vocabulary; else empty.
    """

    token_ids: NDArray[np.uint32]
    policy: Policy
    protected: tuple[Span, ...]
    lookahead_tokens: int
    draft: ModelInfo
    salt: str = ""
    target_fingerprint: str = ""

    def digest(self) -> str:
        """64 hex digits."""
        header = {
            "schema": SCHEMA_VERSION,
            "policy": {policy_name(self.policy): policy_values(self.policy)},
            "protected": [[span.start, span.end] for span in merge(self.protected)],
            "lookahead_tokens": self.lookahead_tokens,
            "draft": [self.draft.id, self.draft.revision, self.draft.tokenizer_fingerprint],
            "salt": self.salt,
            "prompt_tokens": int(self.token_ids.size),
        }
        if self.target_fingerprint:
            header["target"] = self.target_fingerprint
        canonical = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
        return hashlib.sha256(canonical + b"\n" + self.token_ids.astype("<u4").tobytes()).hexdigest()


def policy_name(policy: Policy) -> str:
    """The policy's name in POLICIES."""
    return policy.route.value


def policy_values(policy: Policy) -> dict[str, Any]:
    """Its fields by name, for the canonical form: without those that change nothing, so that digests stay valid."""
    return _without_unset(asdict(policy))  # type: ignore[call-overload]  # every policy is a dataclass


def _without_unset(values: dict[str, Any]) -> dict[str, Any]:
    inner = {name: _without_unset(value) if isinstance(value, dict) else value for name, value in values.items()}
    return {
        name: value for name, value in inner.items() if (name, value) not in _NEUTRAL and name not in _WHILE_GENERATING
    }
