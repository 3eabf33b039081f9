"""Authenticates callers by API key or token. Keys and tokens are reloaded when their files change."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime

from presift.core.errors import PermissionDenied, PresiftError, Unauthenticated
from presift.orchestrator.api.auth.api_keys import PREFIX, entry_of
from presift.orchestrator.api.auth.claimed_tenant import TENANT_KEY, tenant_from_metadata
from presift.orchestrator.api.auth.jwt_tokens import Identity, TokenVerifier
from presift.orchestrator.api.auth.key_file import Keys
from presift.orchestrator.domain.caller import Caller, TenantLimits
from presift.rpc.security.file_watcher import FileWatcher
from presift.rpc.security.service_token import AUTHORIZATION, bearer_token
from presift.telemetry.metrics import count

Metadata = Iterable[tuple[str, str | bytes]] | None


class Authenticator:
    """Accepts API keys and, unless `tokens` is None, tokens. `default_limits` count for tenants without their own.

    `keys` has the limits of all tenants, however they authenticate. If it has no entries, no key is accepted.
    """

    def __init__(
        self, keys: FileWatcher[Keys], tokens: TokenVerifier | None = None, default_limits: TenantLimits | None = None
    ) -> None:
        self._keys = keys
        self._tokens = tokens
        self._default_limits = TenantLimits() if default_limits is None else default_limits

    @property
    def sets_limits(self) -> bool:
        """Whether any tenant has limits now; a changed file may add some."""
        every = (self._default_limits, *self._keys.current().limits.values())
        return any(limits != TenantLimits() for limits in every)

    def admit(self, metadata: Metadata) -> Caller:
        """The caller; counts rejections.

        Raises Unauthenticated, PermissionDenied if another tenant is named, and InvalidRequest for an invalid name.
        Takes a few microseconds per key, so a fraction of a millisecond; a token takes about one.
        """
        try:
            return self._caller(metadata)
        except PresiftError as error:
            count("presift.callers.refused", why=_why(error))
            raise

    def _caller(self, metadata: Metadata) -> Caller:
        pairs = list(metadata or ())
        credential = bearer_token(pairs)
        if credential is None:
            raise Unauthenticated(f"no API key or token: send metadata `{AUTHORIZATION}: Bearer ...` exactly once")
        keys = self._keys.current()
        identity = self._identity(credential, keys)
        tenant = identity.tenant
        if tenant_from_metadata(pairs) not in (None, tenant):
            raise PermissionDenied(f"{TENANT_KEY} names a tenant other than that of the API key or token")
        limits = keys.limits.get(tenant, TenantLimits()).or_default(self._default_limits)
        return Caller(tenant, limits, authenticated=True, is_admin=identity.is_admin)

    async def reload(self) -> None:
        """Check now whether the files have changed. Invalid files are logged, and the old contents stay in force."""
        await asyncio.to_thread(self._reload)

    def _identity(self, credential: str, keys: Keys) -> Identity:
        entry = entry_of(credential, keys.entries)
        if entry is not None:
            # A date of the calendar, so the wall clock: it must hold across restarts and on every orchestrator.
            if entry.expires is not None and datetime.now(UTC).date() > entry.expires:
                raise Unauthenticated(f"the API key expired on {entry.expires}; create a new one")
            return Identity(entry.tenant, entry.is_admin)
        if self._tokens is None or credential.startswith(PREFIX):
            raise Unauthenticated("unknown or revoked API key")
        return self._tokens.verify(credential)

    def _reload(self) -> None:
        self._keys.current()
        if self._tokens is not None:
            self._tokens.reload()


def _why(error: PresiftError) -> str:
    if isinstance(error, Unauthenticated):
        return "credential"
    return "tenant" if isinstance(error, PermissionDenied) else "metadata"
