"""The one error tree.

PresiftError
├── InvalidRequest          a field has a value outside its limits
│   └── PromptTooLong       prompt plus answer exceed the context
├── BudgetExceeded          the budget cannot be met, and `strict` is set
├── RouteUnsupported        the route or policy is not served here
├── Overloaded              a queue is full; retry after `retry_after_s`
├── DraftUnavailable        no draft answered
├── TargetUnavailable       no target answered
├── ShuttingDown            this process shuts down; another replica may answer
├── VocabularyMismatch      draft and target have different vocabularies
├── DeadlineExceeded        the caller's deadline passed
├── Unauthenticated         missing or invalid credentials
├── PermissionDenied        the caller is not allowed to do this
└── InternalError           a bug in presift

`presift.rpc.status` maps each to a gRPC status; nothing here knows gRPC.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from presift.core.generation import ContextSizes


class PresiftError(Exception):
    """Base of all errors that presift raises on purpose.

    `details` are short strings for machines (field, value, limit): never prompt text, never a secret.
    """

    def __init__(self, message: str, **details: str) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class FieldError(PresiftError):
    """An error about one field: its name, its value and its limit."""

    def __init__(self, field: str, value: object, limit: object, message: str = "") -> None:
        text = message or f"{field} is {value}; it must be {limit}"
        super().__init__(text, field=field, value=str(value), limit=str(limit))
        self.field = field
        self.value = value
        self.limit = limit


class InvalidRequest(FieldError):
    """A field has a value outside its limits."""


class PromptTooLong(InvalidRequest):
    """Prompt plus answer exceed the context. `sizes` is None for an error of a peer or about another limit."""

    def __init__(
        self, field: str, value: object, limit: object, message: str = "", sizes: ContextSizes | None = None
    ) -> None:
        super().__init__(field, value, limit, message)
        self.sizes = sizes


class BudgetExceeded(FieldError):
    """The budget cannot be met, and the caller set `strict`."""


class RouteUnsupported(FieldError):
    """The route or policy is not served here; `limit` lists those that are."""


class Overloaded(FieldError):
    """A queue is full. Retry after `retry_after_s` seconds; None: the same request would fail again."""

    def __init__(
        self, field: str, value: object, limit: object, retry_after_s: float | None, message: str = ""
    ) -> None:
        super().__init__(field, value, limit, message)
        self.retry_after_s = retry_after_s


class DraftUnavailable(PresiftError):
    """No draft answered."""


class TargetUnavailable(PresiftError):
    """No target answered, or it disconnected."""


class ShuttingDown(PresiftError):
    """This process shuts down: it refuses new calls and cancels old ones. Another replica may answer."""


class VocabularyMismatch(PresiftError):
    """Draft and target have different vocabularies; `details` name both fingerprints."""


class DeadlineExceeded(PresiftError):
    """The caller's deadline passed."""


class Unauthenticated(PresiftError):
    """The caller has no valid key, token or certificate."""


class PermissionDenied(PresiftError):
    """The caller is not allowed to do this."""


class InternalError(PresiftError):
    """A bug in presift; the log has more."""
