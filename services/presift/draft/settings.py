"""Settings of the draft service: flags (`--chunk-tokens`) or variables (`PRESIFT_DRAFT_CHUNK_TOKENS`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from presift.models.dtype import fastest_dtype
from presift.rpc.settings import Address, InnerSettings


def _home_profiles() -> Path:
    # Not Path.home(): it raises in a container whose user has no home.
    return Path(os.path.expanduser(os.environ.get("PRESIFT_HOME") or "~/.cache/presift")) / "head-profiles"


class DraftSettings(InnerSettings):
    """The draft service: scores the tokens of long prompts with a small model."""

    model_config = SettingsConfigDict(env_prefix="PRESIFT_DRAFT_", cli_prog_name="python -m presift.draft")

    listen: Annotated[Address, Field(description="address to listen on, HOST:PORT; port 0 picks a free port")] = (
        "127.0.0.1:50052"
    )
    model: Annotated[str, Field(description="local Hugging Face folder or hub id of the model")]
    dtype: Annotated[
        Literal["float32", "bfloat16", "int8"] | None,
        Field(
            description="data type of weights and activations; int8 is for linear layers, on a CPU with VNNI; "
            "if unset, bfloat16, or on a CPU without instructions for it int8, or float32 without VNNI"
        ),
    ] = None
    layers: Annotated[
        str | None,
        Field(
            pattern=r"^0\.\.\d{1,4}$",
            description="load only these layers, 0..B; such a draft scores, but generates no lookahead",
        ),
    ] = None
    head_profile: Annotated[
        str,
        Field(
            description="head profile of the model: a file; none; or auto: beside the model, in head_profiles, or one "
            "that comes with presift"
        ),
    ] = "auto"
    head_profiles: Annotated[
        Path,
        Field(
            default_factory=_home_profiles,
            description="folder of profiles that `presift calibrate-draft` could not write beside the model; "
            "PRESIFT_HOME/head-profiles if unset",
        ),
    ]
    calibrate: Annotated[
        bool, Field(description="without a head profile, calibrate the model at start (minutes) and keep the profile")
    ] = False
    device: Annotated[str, Field(description="torch device: cpu, cuda, cuda:1, ...")] = "cpu"
    chunk_tokens: Annotated[
        int, Field(ge=16, description="prompt tokens read per step; a cancelled request stops after the current step")
    ] = 512
    threads: Annotated[int | None, Field(ge=1, description="torch threads; all cores if unset")] = None
    prefix_cache_mib: Annotated[
        int,
        Field(ge=0, description="MiB of KV kept of earlier prompts, so that a later turn reads only what is new"),
    ] = 1024
    max_queue: Annotated[int, Field(ge=0, description="maximum waiting requests; more are refused")] = 64
    max_lookahead_tokens: Annotated[
        int, Field(ge=0, description="maximum lookahead tokens generated for one prompt")
    ] = 256

    @property
    def loaded_dtype(self) -> str:
        """`dtype`, or the device's fastest."""
        return self.dtype or fastest_dtype(self.device)

    @property
    def layer_count(self) -> int | None:
        """How many layers to load; None for all."""
        return None if self.layers is None else int(self.layers.removeprefix("0..")) + 1
