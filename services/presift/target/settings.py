"""Settings of the target service: flags (`--max-running`) or variables (`PRESIFT_TARGET_MAX_RUNNING`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from presift.rpc.settings import Address, InnerSettings


class TargetSettings(InnerSettings):
    """The target service: generates answers with the large model, on SGLang."""

    model_config = SettingsConfigDict(env_prefix="PRESIFT_TARGET_", cli_prog_name="python -m presift.target")

    listen: Annotated[Address, Field(description="address to listen on, HOST:PORT; port 0 picks a free port")] = (
        "127.0.0.1:50053"
    )
    model: Annotated[str, Field(description="local Hugging Face folder or hub id of the model")]
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"] | None,
        Field(
            description="data type of weights and KV; auto: that of the model's files, float16 for float32; if unset, "
            "auto on a GPU, and on a CPU bfloat16, or float32 without instructions for bfloat16"
        ),
    ] = None
    device: Annotated[str, Field(description="torch device type: cpu, cuda, ...")] = "cpu"
    context_tokens: Annotated[
        int | None, Field(ge=8, description="maximum tokens of prompt plus answer; the model's if unset")
    ] = None
    kv_pool_tokens: Annotated[
        int | None,
        Field(ge=64, description="size of the KV cache in tokens; if unset, 65536 on a CPU and what fits on a GPU"),
    ] = None
    kv_page_tokens: Annotated[
        int | None,
        Field(
            ge=1,
            description="tokens of a KV page (SGLang's page_size); if unset, 1 or what the attention backend needs",
        ),
    ] = None
    prefill_chunk_tokens: Annotated[
        int | None,
        Field(
            ge=16,
            description="maximum prompt tokens per prefill step; if unset, 512 on a CPU and SGLang's choice on a GPU",
        ),
    ] = None
    attention_backend: Annotated[
        str | None, Field(description="SGLang attention backend; chosen for the device if unset")
    ] = None
    threads: Annotated[
        int | None,
        Field(ge=1, description="OpenMP threads of each rank on a CPU; if unset, all cores, divided among the ranks"),
    ] = None
    kv_dropping: Annotated[
        bool, Field(description="serve the routes that drop KV (spec_kv, ...) if the self-check passes")
    ] = True
    tool_call_parser: Annotated[
        str, Field(description="SGLang's parser of tool calls: auto (by the model's family), none or a name")
    ] = "auto"
    reasoning_parser: Annotated[
        str, Field(description="SGLang's parser of reasoning: auto (by the model's family), none or a name")
    ] = "auto"
    tensor_parallel: Annotated[
        int,
        Field(
            ge=1,
            description="tensor-parallel ranks: GPUs, or processes on a CPU; with more than KV heads no KV is dropped",
        ),
    ] = 1
    data_parallel: Annotated[int, Field(ge=1, description="model replicas in one engine, each with a KV cache")] = 1
    max_running: Annotated[
        int | None,
        Field(
            ge=1,
            description="maximum requests that run at the same time in a model replica; if unset, 16 on a CPU and "
            "SGLang's choice on a GPU",
        ),
    ] = None
    max_waiting: Annotated[int, Field(ge=0, description="maximum waiting requests; more are refused")] = 64
