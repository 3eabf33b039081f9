"""The one error tree.

PresiftError
├── InvalidRequest          a field has a value outside its limits
│   └── PromptTooLong       prompt plus answer exceed the context
├── BudgetExceeded          `strict` was said and the budget cannot be met
├── RouteUnsupported        the route or policy is not served here
├── Overloaded              a queue is full; come back after `retry_after_s`
├── DraftUnavailable        no draft answered
├── TargetUnavailable       no target answered
├── ShuttingDown            this process drains; another one may answer
├── VocabularyMismatch      draft and target do not read the same token ids
├── DeadlineExceeded        the caller's deadline passed
├── Unauthenticated         nobody knows who calls
├── PermissionDenied        whoever calls may not do this
└── InternalError           a defect of ours

`presift.rpc.status` maps each to a gRPC status; nothing here knows gRPC.
"""

from __future__ import annotations


class PresiftError(Exception):
    """Base of all errors that presift raises on purpose.

    `details` are short strings for machines (field, value, limit): never prompt text, never a secret.
    """

    def __init__(self, message: str, **details: str) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class FieldError(PresiftError):
    """An error about one field: says which, what it was and what it may be."""

    def __init__(self, field: str, value: object, limit: object, message: str = "") -> None:
        text = message or f"{field} is {value}; it must be {limit}"
        super().__init__(text, field=field, value=str(value), limit=str(limit))
        self.field = field
        self.value = value
        self.limit = limit


class InvalidRequest(FieldError):
    """A field has a value outside its limits."""


class PromptTooLong(InvalidRequest):
    """Prompt plus answer exceed the context."""


class BudgetExceeded(FieldError):
    """The caller said `strict` and the budget cannot be met."""


class RouteUnsupported(FieldError):
    """The route or policy is not served here; `limit` lists what is."""


class Overloaded(FieldError):
    """A queue is full. Retry after `retry_after_s` seconds."""

    def __init__(self, field: str, value: object, limit: object, retry_after_s: float, message: str = "") -> None:
        super().__init__(field, value, limit, message)
        self.retry_after_s = retry_after_s


class DraftUnavailable(PresiftError):
    """No draft answered."""


class TargetUnavailable(PresiftError):
    """No target answered, or it went away."""


class ShuttingDown(PresiftError):
    """This process drains: it takes no call, and the time of those that ran is over. Another one may answer."""


class VocabularyMismatch(PresiftError):
    """Draft and target do not read the same token ids; `details` name both fingerprints."""


class DeadlineExceeded(PresiftError):
    """The caller's deadline passed."""


class Unauthenticated(PresiftError):
    """Nobody knows who calls: no key, token or certificate, or none that holds."""


class PermissionDenied(PresiftError):
    """It is known who calls, or that anybody does, and they may not do this."""


class InternalError(PresiftError):
    """A defect of ours; the log holds the rest."""
