"""The engine of a configuration: a small random model for the checks, the shape of a Llama without weights for times.

Only the processes of configurations import this, because it loads torch.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from gpu.configurations import Configuration
from real_engine import random_folder, shaped_folder

from presift.core.errors import TargetUnavailable
from presift.models.folder import ModelFolder
from presift.models.torchvision_ops import declare_missing
from presift.target.sglang import processes
from presift.target.sglang.arguments import SglangOptions, server_arguments, set_environment
from presift.target.sglang.engine import SglangEngine

# Heads of 128, which every backend takes, and KV heads for two ranks. Such weights make sharp attention, and logits of
# which the first is seldom near the second: an answer depends on the KV that is dropped.
SMALL = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 2048,
    "max_position_embeddings": 8192,
    "initializer_range": 0.07,
}
# Llama 3.1, with room for a prompt of 128k tokens and its answer.
_LLAMA = {"vocab_size": 128_256, "max_position_embeddings": 262_144, "rope_theta": 500_000.0, "num_key_value_heads": 8}
SHAPES = {
    "8b": _LLAMA
    | {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70b": _LLAMA
    | {"hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80, "num_attention_heads": 64},
}
CHUNK_TOKENS, POOL_TOKENS = 512, 32_768


class RefusedArguments(Exception):
    """SGLang does not take a configuration; the message is its own."""


class _Engine(SglangEngine):
    """With arguments of SGLang that presift has no setting for."""

    def __init__(self, options: SglangOptions, arguments: dict[str, Any]) -> None:
        super().__init__(options)
        self._arguments = arguments

    def _launch(self) -> Any:
        set_environment(self._options)
        declare_missing()
        return processes.launch(server_arguments(self._options) | self._arguments)


@asynccontextmanager
async def started(chosen: Configuration, rehearse: bool) -> AsyncIterator[SglangEngine]:
    """The engine, whether or not it drops KV. Raises RefusedArguments, or TargetUnavailable for other failures."""
    keeper, folder = random_folder(**SMALL)
    options: dict[str, Any] = {"kv_pool_tokens": POOL_TOKENS, "prefill_chunk_tokens": CHUNK_TOKENS}
    if chosen.shape and not rehearse:
        keeper, folder = shaped_folder(**SHAPES[chosen.shape])
        options = {"load_format": "dummy"}
    with keeper:
        engine = _Engine(_options(chosen, folder, rehearse, options), chosen.engine_arguments())
        try:
            await _start(engine)
            yield engine
        finally:
            await engine.stop()


def _options(chosen: Configuration, folder: ModelFolder, rehearse: bool, options: dict[str, Any]) -> SglangOptions:
    options |= {"log_level": "info", "tensor_parallel": chosen.tensor_parallel}
    # presift's attention for a plain CPU takes the place of SGLang's torch_native, which has no CUDA graphs.
    device = {"device": "cpu", "dtype": "float32"} if rehearse else {"device": "cuda", "dtype": "bfloat16"}
    backend = None if rehearse else chosen.backend
    return SglangOptions(folder, attention_backend=backend, kv_page_tokens=chosen.page_tokens, **options, **device)


async def _start(engine: SglangEngine) -> None:
    try:
        await engine.start()
    except TargetUnavailable as error:
        # Errors of its own processes are others.
        if isinstance(error.__cause__, ValueError | AssertionError | NotImplementedError):
            raise RefusedArguments(str(error.__cause__)) from error
        raise
