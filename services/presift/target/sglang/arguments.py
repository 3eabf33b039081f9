"""The server arguments and environment with which presift starts SGLang, on a CPU and on a GPU."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from presift.core.errors import InvalidRequest
from presift.models.dtype import native_dtype
from presift.models.folder import ModelFolder
from presift.target import sglang_plugin

_CPU_KV_POOL_TOKENS = 65_536
_CPU_PREFILL_CHUNK_TOKENS = 512
CPU_MAX_RUNNING = 16
# OpenMP reads these when torch is loaded. Threads that spin while they wait take the cores from each other: 985 ms a
# token instead of 137 ms.
_ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


@dataclass(frozen=True, slots=True)
class SglangOptions:
    """How to run a model. None: chosen by the device or the model."""

    folder: ModelFolder
    dtype: str | None = None
    device: str = "cpu"
    context_tokens: int | None = None
    kv_pool_tokens: int | None = None
    kv_page_tokens: int | None = None
    prefill_chunk_tokens: int | None = None
    attention_backend: str | None = None
    threads: int | None = None
    max_running: int | None = None
    log_level: str = "error"
    kv_dropping: bool = True
    tensor_parallel: int = 1
    data_parallel: int = 1
    # SGLang's names, "auto" (by the model's family) or "none".
    tool_call_parser: str = "auto"
    reasoning_parser: str = "auto"
    # "dummy" loads no weights: real shapes, random answers.
    load_format: str = "safetensors"


def server_arguments(options: SglangOptions) -> dict[str, Any]:
    """Keyword arguments of `sglang.Engine`. Raises InvalidRequest for options that contradict each other."""
    arguments: dict[str, Any] = {
        "model_path": str(options.folder.path),
        # Part of the names of compressed KV.
        "weight_version": options.folder.revision,
        "dtype": options.dtype,
        "device": options.device,
        "context_length": options.context_tokens,
        "max_total_tokens": options.kv_pool_tokens,
        "page_size": options.kv_page_tokens,
        "chunked_prefill_size": options.prefill_chunk_tokens,
        "attention_backend": options.attention_backend,
        "max_running_requests": options.max_running,
        "tp_size": options.tensor_parallel,
        "dp_size": options.data_parallel,
        "log_level": options.log_level,
        "skip_tokenizer_init": not options.folder.has_tokenizer,
        "load_format": options.load_format,
        "trust_remote_code": False,
        "incremental_streaming_output": True,
        "skip_server_warmup": True,
        "tool_call_parser": _parser(options.folder, options.tool_call_parser),
        # With it a grammar begins after the reasoning.
        "reasoning_parser": _parser(options.folder, options.reasoning_parser),
        "json_model_override_args": _architecture(options.folder),
    }
    if options.device == "cpu":
        arguments |= _on_cpu(options)
    _check_chunk(arguments["chunked_prefill_size"], options.kv_page_tokens)
    return {name: value for name, value in arguments.items() if value is not None}


def _on_cpu(options: SglangOptions) -> dict[str, Any]:
    return {
        "dtype": options.dtype or native_dtype(options.device),
        "max_running_requests": options.max_running or CPU_MAX_RUNNING,
        "disable_cuda_graph": True,
        "sampling_backend": "pytorch",
        # A grammar is compiled for the tokenizer's vocabulary.
        "grammar_backend": "xgrammar" if options.folder.has_tokenizer else "none",
        "chunked_prefill_size": options.prefill_chunk_tokens or _CPU_PREFILL_CHUNK_TOKENS,
        # Otherwise an idle scheduler polls without pause and takes a whole core from the draft.
        "sleep_on_idle": True,
        "attention_backend": options.attention_backend or "torch_native",
        # Without a limit SGLang would take most of the machine's memory.
        "max_total_tokens": options.kv_pool_tokens or _CPU_KV_POOL_TOKENS,
    }


def _check_chunk(chunk_tokens: int | None, page_tokens: int | None) -> None:
    """The next chunk begins at a page. SGLang checks the same, in words of its own."""
    if chunk_tokens and page_tokens and chunk_tokens % page_tokens:
        raise InvalidRequest("prefill_chunk_tokens", chunk_tokens, f"a multiple of kv_page_tokens ({page_tokens})")


def _parser(folder: ModelFolder, name: str) -> str | None:
    """A parser reads text, so it needs a tokenizer."""
    return name if folder.has_tokenizer and name != "none" else None


def _architecture(folder: ModelFolder) -> str | None:
    """SGLang chooses the model's class by `architectures`. The override for a config without them, else None."""
    config = json.loads((folder.path / "config.json").read_text())
    if config.get("architectures"):
        return None
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES  # noqa: PLC0415

    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.get("model_type"))
    if name is None:
        raise InvalidRequest(
            "model", folder.path, "a causal language model (config.json has no architectures and an unknown model_type)"
        )
    return json.dumps({"architectures": [name]})


def divide_cores(ranks: int, environment: MutableMapping[str, str]) -> None:
    """Give each rank its cores, as SGLang wants it where there are more ranks than NUMA nodes, and as many threads."""
    if ranks == 1:
        return
    cores = sorted(os.sched_getaffinity(0))
    bounds = [rank * len(cores) // ranks for rank in range(ranks + 1)]
    shares = [cores[first : max(end, first + 1)] for first, end in pairwise(bounds)]
    environment.setdefault("SGLANG_CPU_OMP_THREADS_BIND", "|".join(",".join(map(str, share)) for share in shares))
    environment.setdefault("OMP_NUM_THREADS", str(len(shares[0])))


def set_environment(options: SglangOptions, environment: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables that SGLang's child processes inherit. Call it before torch is imported."""
    defaults: Mapping[str, str] = _ENVIRONMENT
    for name, value in defaults.items():
        environment.setdefault(name, value)
    if options.device == "cpu":
        # SGLang compiles a few functions on first use: seconds within a request, and it takes a C++ compiler.
        environment.setdefault("TORCHDYNAMO_DISABLE", "1")
        divide_cores(options.tensor_parallel * options.data_parallel, environment)
    if options.kv_dropping:
        environment[sglang_plugin.SWITCH] = "1"
    if options.threads is not None:
        environment["OMP_NUM_THREADS"] = str(options.threads)
