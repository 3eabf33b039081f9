"""Who calls: a tenant and its limits, put where the servicer finds it. Knows neither keys nor gRPC."""

from __future__ import annotations

import hashlib
import hmac
from contextvars import ContextVar
from dataclasses import dataclass

from presift.core.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tenant may use, over all orchestrators; None is without a limit. Raises InvalidRequest.

    `tokens_per_minute`: prompt tokens and generated tokens; `concurrency`: calls at once.
    """

    tokens_per_minute: int | None = None
    concurrency: int | None = None

    def __post_init__(self) -> None:
        for name in ("tokens_per_minute", "concurrency"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidRequest(name, value, ">= 1")

    def over(self, beneath: Limits) -> Limits:
        """These, completed by others."""
        return Limits(
            beneath.tokens_per_minute if self.tokens_per_minute is None else self.tokens_per_minute,
            beneath.concurrency if self.concurrency is None else self.concurrency,
        )


@dataclass(frozen=True, slots=True)
class Caller:
    """`tenant` is proven where `authenticated`; else it is what the caller says, None where it says nothing."""

    tenant: str | None = None
    limits: Limits = Limits()
    authenticated: bool = False

    def salt(self, deployment_salt: str) -> str:
        """The namespace of all that is kept of this caller's requests: the tenant's own where it is proven, else the
        deployment's. No caller can choose or know another's."""
        if not self.authenticated or self.tenant is None:
            return deployment_salt
        return hmac.new(deployment_salt.encode(), self.tenant.encode(), hashlib.sha256).hexdigest()


_CURRENT: ContextVar[Caller | None] = ContextVar("presift_caller", default=None)


def current_caller() -> Caller | None:
    """Whose call this is; None where callers are not asked who they are."""
    return _CURRENT.get()


def set_current_caller(caller: Caller) -> None:
    """This call, until its task ends, is `caller`'s."""
    _CURRENT.set(caller)
