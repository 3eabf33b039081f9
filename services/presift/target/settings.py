"""The settings of the target service: flags (`--max-running`) or variables (`PRESIFT_TARGET_MAX_RUNNING`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from presift.rpc.settings import InnerSettings


class TargetSettings(InnerSettings):
    """presift's target: runs the large model on SGLang."""

    model_config = SettingsConfigDict(env_prefix="PRESIFT_TARGET_", cli_prog_name="python -m presift.target")

    listen: Annotated[str, Field(pattern=r"^.+:\d{1,5}$", description="HOST:PORT; port 0 takes any free one")] = (
        "127.0.0.1:50053"
    )
    model: Annotated[str, Field(description="a Hugging Face folder, or a hub id")]
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], Field(description="of the weights")] = (
        "bfloat16"
    )
    device: Annotated[str, Field(description="a torch device type: cpu, cuda, ...")] = "cpu"
    context_tokens: Annotated[int | None, Field(ge=8, description="prompt plus answer; the model's if unset")] = None
    kv_pool_tokens: Annotated[int | None, Field(ge=64, description="KV slots; CPU 65536, else what fits")] = None
    prefill_chunk_tokens: Annotated[int, Field(ge=16, description="prompt tokens read in one step")] = 512
    attention_backend: Annotated[str | None, Field(description="SGLang's name; what suits the device if unset")] = None
    threads: Annotated[int | None, Field(ge=1, description="OpenMP threads on a CPU; all cores if unset")] = None
    kv_dropping: Annotated[bool, Field(description="serve the routes that drop KV, if the self-check passes")] = True
    tensor_parallel: Annotated[int, Field(ge=1, description="GPUs that share each layer; above 1 no KV is dropped")] = 1
    data_parallel: Annotated[int, Field(ge=1, description="copies of the model in one engine; likewise")] = 1
    max_running: Annotated[int, Field(ge=1, description="requests that are generated together")] = 16
    max_waiting: Annotated[int, Field(ge=0, description="requests that may wait; more are refused")] = 64
