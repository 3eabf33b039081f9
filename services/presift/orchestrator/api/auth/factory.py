"""Builds the authenticator from the settings."""

from __future__ import annotations

import logging

from presift.core.errors import InvalidRequest
from presift.orchestrator.api.auth.authenticator import Authenticator
from presift.orchestrator.api.auth.jwt_tokens import TokenRules, TokenVerifier, load_key_set
from presift.orchestrator.api.auth.key_file import Keys, load_keys
from presift.orchestrator.config.settings import OrchestratorSettings
from presift.orchestrator.domain.caller import TenantLimits
from presift.rpc.security.file_watcher import FileWatcher

log = logging.getLogger(__name__)


def build_authenticator(settings: OrchestratorSettings) -> Authenticator | None:
    """None if callers need not authenticate. Raises PresiftError for unreadable files and for invalid settings."""
    keys_path = settings.api_keys_file
    default_limits = TenantLimits(settings.tenant_tokens_per_minute, settings.tenant_concurrency)
    tokens = _token_verifier(settings)
    if keys_path is None and tokens is None:
        if default_limits != TenantLimits():
            names = "tenant_tokens_per_minute or tenant_concurrency"
            raise InvalidRequest(names, "set", "unset without api_keys_file or jwks_file")
        return None
    if not settings.secret("tenant_salt"):
        log.warning(
            "tenant_salt is not set: whoever can write to the cache can forge compressed prompts,"
            " and a tenant's name gives its namespace; set it, or tenant_salt_file, to one secret on every orchestrator"
        )
    keys = FileWatcher((), Keys) if keys_path is None else FileWatcher([keys_path], lambda: load_keys(keys_path))
    return Authenticator(keys, tokens, default_limits)


def _token_verifier(settings: OrchestratorSettings) -> TokenVerifier | None:
    path = settings.jwks_file
    for name in ("jwt_issuer", "jwt_audience"):
        is_set = bool(getattr(settings, name))
        if is_set != (path is not None):
            limit = "set with jwks_file" if path is not None else "unset without jwks_file"
            raise InvalidRequest(name, "set" if is_set else "unset", limit)
    if path is None:
        return None
    rules = TokenRules(
        settings.jwt_issuer,
        settings.jwt_audience,
        settings.jwt_tenant_claim,
        settings.jwt_admin_claim,
        settings.jwt_max_lifetime_s,
    )
    return TokenVerifier(FileWatcher([path], lambda: load_key_set(path)), rules)
