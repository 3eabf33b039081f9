"""The door by its settings: who is let in by which files."""

from __future__ import annotations

from presift.core.errors import InvalidRequest
from presift.orchestrator.access.caller import Limits
from presift.orchestrator.access.doorkeeper import Doorkeeper
from presift.orchestrator.access.jwt_tokens import Rules, TokenVerifier, load_key_set
from presift.orchestrator.access.key_file import Keys, load_keys
from presift.orchestrator.settings import OrchestratorSettings
from presift.rpc.watched import Watched


def open_door(settings: OrchestratorSettings) -> Doorkeeper | None:
    """None where anybody may call. Raises PresiftError for files that cannot be read or settings that cannot hold."""
    keys_path, usual = settings.api_keys_file, Limits(settings.tenant_tokens_per_minute, settings.tenant_concurrency)
    tokens = _tokens(settings)
    if keys_path is None and tokens is None:
        if usual != Limits():
            raise InvalidRequest("tenant_tokens_per_minute or tenant_concurrency", "set", "with keys or tokens alone")
        return None
    keys = Watched((), Keys) if keys_path is None else Watched([keys_path], lambda: load_keys(keys_path))
    return Doorkeeper(keys, tokens, usual)


def _tokens(settings: OrchestratorSettings) -> TokenVerifier | None:
    path, said = settings.jwks_file, {name: getattr(settings, name) for name in ("jwt_issuer", "jwt_audience")}
    for name, value in said.items():
        if bool(value) != (path is not None):
            limit = "set with jwks_file" if path is not None else "unset without jwks_file"
            raise InvalidRequest(name, "set" if value else "unset", limit)
    if path is None:
        return None
    rules = Rules(settings.jwt_issuer, settings.jwt_audience, settings.jwt_tenant_claim)
    return TokenVerifier(Watched([path], lambda: load_key_set(path)), rules)
