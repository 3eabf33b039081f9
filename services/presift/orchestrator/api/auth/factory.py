"""The door by its settings: who is let in by which files."""

from __future__ import annotations

from presift.core.errors import InvalidRequest
from presift.orchestrator.api.auth.authenticator import Authenticator
from presift.orchestrator.api.auth.jwt_tokens import Rules, TokenVerifier, load_key_set
from presift.orchestrator.api.auth.key_file import Keys, load_keys
from presift.orchestrator.config.settings import OrchestratorSettings
from presift.orchestrator.domain.caller import Limits
from presift.rpc.security.file_watcher import FileWatcher


def build_authenticator(settings: OrchestratorSettings) -> Authenticator | None:
    """None where anybody may call. Raises PresiftError for files that cannot be read or settings that cannot hold."""
    keys_path, usual = settings.api_keys_file, Limits(settings.tenant_tokens_per_minute, settings.tenant_concurrency)
    tokens = _tokens(settings)
    if keys_path is None and tokens is None:
        if usual != Limits():
            raise InvalidRequest("tenant_tokens_per_minute or tenant_concurrency", "set", "with keys or tokens alone")
        return None
    keys = FileWatcher((), Keys) if keys_path is None else FileWatcher([keys_path], lambda: load_keys(keys_path))
    return Authenticator(keys, tokens, usual)


def _tokens(settings: OrchestratorSettings) -> TokenVerifier | None:
    path, said = settings.jwks_file, {name: getattr(settings, name) for name in ("jwt_issuer", "jwt_audience")}
    for name, value in said.items():
        if bool(value) != (path is not None):
            limit = "set with jwks_file" if path is not None else "unset without jwks_file"
            raise InvalidRequest(name, "set" if value else "unset", limit)
    if path is None:
        return None
    rules = Rules(settings.jwt_issuer, settings.jwt_audience, settings.jwt_tenant_claim)
    return TokenVerifier(FileWatcher([path], lambda: load_key_set(path)), rules)
