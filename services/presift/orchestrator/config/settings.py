"""The orchestrator's settings, read once at the start.

Each part is a class. A function that needs settings takes the part that it reads.
"""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import urlencode

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from presift.core.errors import InvalidRequest, PresiftError
from presift.orchestrator.config.backend_settings import (
    CacheSettings,
    EstimationSettings,
    ModelServiceSettings,
    QualitySettings,
    TokenizerSettings,
)
from presift.orchestrator.config.flag_groups import grouped_flags
from presift.orchestrator.config.frontend_settings import (
    AdmissionSettings,
    CallerSettings,
    ListenSettings,
    QuotaSettings,
)
from presift.orchestrator.config.policy_settings import PolicySettings
from presift.rpc.server.server import ServerOptions
from presift.rpc.settings import ServiceSettings


class OrchestratorSettings(
    ListenSettings,
    ModelServiceSettings,
    CacheSettings,
    TokenizerSettings,
    CallerSettings,
    QuotaSettings,
    AdmissionSettings,
    PolicySettings,
    EstimationSettings,
    QualitySettings,
    ServiceSettings,
):
    """presift's orchestrator: receives applications' requests, compresses long prompts and streams the answers.

    Each flag is also an environment variable: --draft-address is PRESIFT_ORCHESTRATOR_DRAFT_ADDRESS.
    """

    model_config = SettingsConfigDict(
        env_prefix="PRESIFT_ORCHESTRATOR_", cli_prog_name="python -m presift.orchestrator", cli_hide_none_type=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """pydantic-settings' usual order; only the flags are grouped."""
        flags = grouped_flags(settings_cls)
        return flags, init_settings, env_settings, dotenv_settings, file_secret_settings

    @property
    def knows_callers(self) -> bool:
        """Whether callers must authenticate."""
        return self.tls_client_ca is not None or self.api_keys_file is not None or self.jwks_file is not None

    def server_options(self) -> ServerOptions:
        return replace(
            super().server_options(),
            lame_duck_s=self.lame_duck_s,
            max_connection_age_s=self.max_connection_age_s,
            max_connection_age_grace_s=self.max_connection_age_grace_s,
        )

    def allowed_origins(self) -> tuple[str, ...]:
        """`http_origins` as browsers write them. Raises InvalidRequest for `*` where anyone may call."""
        origins = tuple(origin.strip().lower() for origin in self.http_origins.split(",") if origin.strip())
        if "*" in origins and self.api_keys_file is None and self.jwks_file is None and not self.insecure:
            limit = (
                "a list of origins, unless callers need a key or token (api_keys_file, jwks_file) or with --insecure"
            )
            raise InvalidRequest("http_origins", "*", limit)
        return origins

    def allowed_hosts(self) -> tuple[str, ...]:
        """`http_hosts` as browsers write them."""
        return tuple(host.strip().lower() for host in self.http_hosts.split(",") if host.strip())

    def resolved_cache_url(self) -> str:
        """The cache's URL with its CA; may hold a password. Raises PresiftError, whose text never quotes the URL."""
        url = self.secret("cache_url")
        if self.cache_ca is None:
            return url
        if not url.lower().startswith(("rediss://", "rediss+sentinel://", "rediss+cluster://")):
            raise PresiftError("cache_ca needs a rediss://, rediss+sentinel:// or rediss+cluster:// cache_url")
        return f"{url}{'&' if '?' in url else '?'}{urlencode({'ssl_ca_certs': self.cache_ca})}"
