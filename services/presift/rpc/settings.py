"""The settings that every service has. Read once, in `__main__`; the rest of the code takes plain arguments."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from presift.rpc.server import ServerOptions


class ServiceSettings(BaseSettings):
    """Subclasses set `env_prefix`; each field is a flag (`--drain-s`) and a variable (`PRESIFT_DRAFT_DRAIN_S`)."""

    model_config = SettingsConfigDict(
        extra="forbid", cli_parse_args=True, cli_kebab_case=True, cli_implicit_flags=True, cli_avoid_json=True
    )

    listen: Annotated[str, Field(pattern=r"^.+:\d{1,5}$", description="HOST:PORT; port 0 takes any free one")]
    max_message_mib: Annotated[int, Field(ge=1, le=1024, description="largest gRPC message, MiB")] = 64
    max_calls: Annotated[int, Field(ge=1, description="calls at once, whatever they do; health is answered still")] = (
        4096
    )
    drain_s: Annotated[float, Field(ge=0, description="seconds that running calls get after SIGTERM")] = 30.0
    otlp_endpoint: Annotated[str | None, Field(description="OTLP/gRPC endpoint for traces and metrics")] = None
    log_level: Annotated[str, Field(pattern="^(DEBUG|INFO|WARNING|ERROR)$")] = "INFO"

    def server_options(self) -> ServerOptions:
        return ServerOptions(self.listen, self.max_message_mib * 2**20, self.drain_s, self.max_calls)
