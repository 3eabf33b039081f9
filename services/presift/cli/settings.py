"""Where the command keeps things. Read once, at the edge."""

from __future__ import annotations

from pathlib import Path

from pydantic_settings import BaseSettings, SettingsConfigDict


class CliSettings(BaseSettings):
    """`PRESIFT_HOME` holds models and logs; `PRESIFT_ADDRESS` is the orchestrator that commands talk to."""

    model_config = SettingsConfigDict(env_prefix="PRESIFT_", extra="ignore")

    home: Path = Path.home() / ".cache" / "presift"
    address: str = "127.0.0.1:50051"
