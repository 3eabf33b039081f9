"""Model registry: asks draft and target for their models, compares them, and asks again after the draft changed."""

from __future__ import annotations

import asyncio
import logging

from presift.core.errors import DraftUnavailable, PresiftError, TargetUnavailable, VocabularyMismatch
from presift.core.plan import ModelInfo
from presift.orchestrator.domain.ports import Draft, Target, TargetInfo
from presift.rpc.pool.replica import ReplicaStatus

log = logging.getLogger(__name__)


class ModelRegistry:
    """Knows the target (required) and the draft (None while it is unavailable or incompatible).

    `draft_fingerprint` is the tokenizer that the draft must have; empty means the target's.
    """

    def __init__(
        self,
        draft: Draft,
        target: Target,
        tokenizer_fingerprint: str = "",
        draft_fingerprint: str = "",
        *,
        retry_s: float = 1.0,
    ) -> None:
        self._draft = draft
        self._draft_fingerprint = draft_fingerprint
        self._target = target
        self._tokenizer_fingerprint = tokenizer_fingerprint
        self._retry_s = retry_s
        self._refresh: asyncio.Task[None] | None = None
        self.draft: ModelInfo | None = None
        self.target: TargetInfo | None = None

    async def connect(self) -> TargetInfo:
        """Wait for the target and look for the draft. Raises VocabularyMismatch, naming both fingerprints, if either
        the draft's or this orchestrator's tokenizer differs from the target's."""
        while self.target is None:
            try:
                self.target = await self._target.info()
            except PresiftError as error:
                log.info("waiting for the target: %s", error.message)
                await asyncio.sleep(self._retry_s)
        check_tokenizer(self._tokenizer_fingerprint, self.target.model)
        try:
            self.draft = await self._matching_draft(self.target)
        except VocabularyMismatch:
            raise
        except PresiftError as error:
            log.warning("starting without a draft (requests that need one are answered in full): %s", error.message)
            self.find_draft_again()
        return self.target

    def replace_target(self, target: TargetInfo) -> None:
        """New requests are planned for this target, which reads the same token ids. No effect before `connect`."""
        if self.target is not None:
            self.target = target

    def find_draft_again(self) -> None:
        """Forget the draft and look for it in the background; requests that need one are answered in full meanwhile."""
        self.draft = None
        if self._refresh is None or self._refresh.done():
            self._refresh = asyncio.create_task(self._find_draft(), name="find draft")

    def statuses(self) -> list[ReplicaStatus]:
        """The status of every replica of draft and target."""
        return [*self._draft.statuses(), *self._target.statuses()]

    @property
    def has_target_now(self) -> bool:
        """Whether some target is connected and serves."""
        return any(each.is_healthy and not each.unused for each in self._target.statuses())

    @property
    def has_draft_now(self) -> bool:
        """Whether a draft is known, and some replica of it may be called."""
        return self.draft is not None and any(each.is_usable for each in self._draft.statuses())

    @property
    def has_lookahead_now(self) -> bool:
        """Whether such a draft can generate a lookahead."""
        return self.draft is not None and self.draft.can_look_ahead and self.has_draft_now

    async def aclose(self) -> None:
        """Stop looking for a draft."""
        if self._refresh is not None:
            self._refresh.cancel()
            await asyncio.gather(self._refresh, return_exceptions=True)

    async def _find_draft(self) -> None:
        warned = ""
        while self.draft is None and self.target is not None:
            try:
                self.draft = await self._matching_draft(self.target)
                log.info("draft found: %s", self.draft.id)
            except PresiftError as error:
                if error.message != warned:
                    log.warning("no draft: %s", error.message)
                warned = error.message
                await asyncio.sleep(self._retry_s)

    async def _matching_draft(self, target: TargetInfo) -> ModelInfo:
        draft = await self._draft.info()
        if self._draft_fingerprint:
            check_draft_tokenizer(self._draft_fingerprint, draft)
        else:
            check_vocabulary(draft, target.model)
        return draft

    def known_target(self) -> TargetInfo:
        """Raises TargetUnavailable until the target has answered once."""
        if self.target is None:
            raise TargetUnavailable("the target has not answered yet")
        return self.target

    def known_draft(self) -> ModelInfo:
        """Raises DraftUnavailable while there is none."""
        if self.draft is None:
            raise DraftUnavailable("no draft is connected")
        return self.draft


def check_tokenizer(tokenizer_fingerprint: str, target: ModelInfo) -> None:
    """Raise VocabularyMismatch if the orchestrator's tokenizer, if it has one, is not the target's."""
    if tokenizer_fingerprint and tokenizer_fingerprint != target.tokenizer_fingerprint:
        raise VocabularyMismatch(
            f"the orchestrator's tokenizer ({tokenizer_fingerprint}) is not that of target {target.id} "
            f"({target.tokenizer_fingerprint or 'no tokenizer'})",
            orchestrator=tokenizer_fingerprint,
            target=target.tokenizer_fingerprint,
        )


def check_vocabulary(draft: ModelInfo, target: ModelInfo) -> None:
    """Raise VocabularyMismatch unless both read the same token ids."""
    if draft.shares_vocabulary(target):
        return
    named = [f"{m.id} ({m.tokenizer_fingerprint or f'no tokenizer, {m.vocabulary_size} ids'})" for m in (draft, target)]
    raise VocabularyMismatch(
        f"draft {named[0]} and target {named[1]} do not share a vocabulary; use a draft of the target's family "
        "or cross_vocabulary",
        draft=draft.tokenizer_fingerprint,
        target=target.tokenizer_fingerprint,
    )


def check_draft_tokenizer(draft_fingerprint: str, draft: ModelInfo) -> None:
    """Raise VocabularyMismatch unless the tokenizer for the draft's ids is the draft's own."""
    if draft_fingerprint != draft.tokenizer_fingerprint:
        raise VocabularyMismatch(
            f"draft_tokenizer ({draft_fingerprint}) is not that of draft {draft.id} "
            f"({draft.tokenizer_fingerprint or 'no tokenizer'})",
            orchestrator=draft_fingerprint,
            draft=draft.tokenizer_fingerprint,
        )
