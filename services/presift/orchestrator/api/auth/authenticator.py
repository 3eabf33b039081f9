"""The doorkeeper: from what a caller shows to who calls. Keys and tokens are read again when their files change."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from presift.core.errors import PermissionDenied, PresiftError, Unauthenticated
from presift.orchestrator.api.auth.api_keys import PREFIX, entry_of
from presift.orchestrator.api.auth.jwt_tokens import TokenVerifier
from presift.orchestrator.api.auth.key_file import Keys
from presift.orchestrator.api.grpc.requests import TENANT_KEY, tenant_from_metadata
from presift.orchestrator.domain.caller import Caller, Limits
from presift.rpc.security.file_watcher import FileWatcher
from presift.rpc.security.service_token import AUTHORIZATION, bearer_token
from presift.telemetry.metrics import count

Metadata = Iterable[tuple[str, str | bytes]] | None


class Authenticator:
    """Lets callers in by API key or, unless `tokens` is None, by token. `usual`: limits of tenants without their own.

    `keys` also says the tenants' limits, however they come in; one without entries lets nobody in by key.
    """

    def __init__(
        self, keys: FileWatcher[Keys], tokens: TokenVerifier | None = None, usual: Limits | None = None
    ) -> None:
        self._keys = keys
        self._tokens = tokens
        self._usual = Limits() if usual is None else usual

    def admit(self, metadata: Metadata) -> Caller:
        """As `caller`; refusals are counted."""
        try:
            return self.caller(metadata)
        except PresiftError as error:
            count("presift.callers.refused", why=_why(error))
            raise

    def caller(self, metadata: Metadata) -> Caller:
        """Raises Unauthenticated, PermissionDenied where another tenant is named, and InvalidRequest where none can be.

        A few microseconds a key, so a fraction of a millisecond; a token takes about one.
        """
        pairs = list(metadata or ())
        credential = bearer_token(pairs)
        if credential is None:
            raise Unauthenticated(f"no key and no token: metadata `{AUTHORIZATION}: Bearer ...` is to be given once")
        keys = self._keys.current()
        tenant = self._tenant(credential, keys)
        if tenant_from_metadata(pairs) not in (None, tenant):
            raise PermissionDenied(f"{TENANT_KEY} names another tenant than the one that the key or token is for")
        return Caller(tenant, keys.limits.get(tenant, Limits()).over(self._usual), authenticated=True)

    async def reload(self) -> None:
        """Look now whether the files have changed; what is bad is logged, and the old stays."""
        await asyncio.to_thread(self._look)

    def _tenant(self, credential: str, keys: Keys) -> str:
        entry = entry_of(credential, keys.entries)
        if entry is not None:
            return entry.tenant
        if self._tokens is None or credential.startswith(PREFIX):
            raise Unauthenticated("the key is none of ours, or not any more")
        return self._tokens.tenant_of(credential)

    def _look(self) -> None:
        self._keys.current()
        if self._tokens is not None:
            self._tokens.refresh()


def _why(error: PresiftError) -> str:
    if isinstance(error, Unauthenticated):
        return "credential"
    return "tenant" if isinstance(error, PermissionDenied) else "metadata"
