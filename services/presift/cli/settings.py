"""The environment variables of the command line. Commands read them once and pass them on."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class CliSettings(BaseSettings):
    """`PRESIFT_HOME` is the folder for models and logs. `PRESIFT_ADDRESS` is the orchestrator to call. `PRESIFT_TLS`,
    `PRESIFT_CA`, `PRESIFT_CERT` and `PRESIFT_KEY` configure TLS. `PRESIFT_API_KEY` or `PRESIFT_API_KEY_FILE` has the
    API key.
    """

    model_config = SettingsConfigDict(env_prefix="PRESIFT_", extra="ignore", hide_input_in_errors=True)

    home: Path = Path.home() / ".cache" / "presift"
    address: str = "127.0.0.1:50051"
    tls: bool = False
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    api_key: SecretStr | None = None
    api_key_file: Path | None = None
