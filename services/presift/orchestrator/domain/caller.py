"""The caller of a request: a tenant and its limits. Knows neither API keys nor gRPC."""

from __future__ import annotations

import hashlib
import hmac
from contextvars import ContextVar
from dataclasses import dataclass

from presift.core.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """What a tenant may use over all orchestrators; None means unlimited. Raises InvalidRequest.

    `tokens_per_minute` counts prompt tokens and generated tokens; `concurrency` counts simultaneous requests.
    """

    tokens_per_minute: int | None = None
    concurrency: int | None = None

    def __post_init__(self) -> None:
        for name in ("tokens_per_minute", "concurrency"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidRequest(name, value, ">= 1")

    def or_default(self, default: TenantLimits) -> TenantLimits:
        """These limits, with the unset ones taken from `default`."""
        return TenantLimits(
            default.tokens_per_minute if self.tokens_per_minute is None else self.tokens_per_minute,
            default.concurrency if self.concurrency is None else self.concurrency,
        )


@dataclass(frozen=True, slots=True)
class Caller:
    """`tenant` is proven if `authenticated`; otherwise it is what the caller claims, None if it names no tenant.

    `is_admin`: the key or token shows the state of the whole service, not the tenant's alone.
    """

    tenant: str | None = None
    limits: TenantLimits = TenantLimits()
    authenticated: bool = False
    is_admin: bool = False

    @property
    def proven_tenant(self) -> str | None:
        """The tenant if it is proven, else None."""
        return self.tenant if self.authenticated else None

    def salt(self, deployment_salt: str) -> str:
        """The namespace of everything that is cached for this caller: derived from the tenant if it is proven,
        otherwise the deployment's. No caller can choose or learn another tenant's namespace."""
        tenant = self.proven_tenant
        if tenant is None:
            return deployment_salt
        return hmac.new(deployment_salt.encode(), tenant.encode(), hashlib.sha256).hexdigest()


_CURRENT: ContextVar[Caller | None] = ContextVar("presift_caller", default=None)


def current_caller() -> Caller | None:
    """The authenticated caller of the current task; None if authentication is off."""
    return _CURRENT.get()


def sees_whole_service() -> bool:
    """Whether the caller of the current task may see other tenants' effects on the service: an administrator, and
    everyone if authentication is off."""
    caller = current_caller()
    return caller is None or caller.is_admin


def proven_tenant() -> str | None:
    """The tenant of the authenticated caller of the current task; None if authentication is off."""
    caller = current_caller()
    return None if caller is None else caller.proven_tenant


def set_current_caller(caller: Caller) -> None:
    """Set the caller of the current task."""
    _CURRENT.set(caller)
