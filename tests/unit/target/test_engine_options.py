"""Each setting of the target that says how to run the engine reaches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from presift.target.__main__ import engine_options
from presift.target.settings import TargetSettings
from presift.target.sglang.arguments import SglangOptions

# A value that is not the default, as on the command line (None: `--no-NAME`) and in the options.
VALUES = {
    "dtype": ("float16", "float16"),
    "device": ("cuda", "cuda"),
    "context_tokens": ("900", 900),
    "kv_pool_tokens": ("5000", 5000),
    "kv_page_tokens": ("16", 16),
    "prefill_chunk_tokens": ("300", 300),
    "attention_backend": ("triton", "triton"),
    "threads": ("3", 3),
    "max_running": ("7", 7),
    "kv_dropping": (None, False),
    "tool_call_parser": ("qwen25", "qwen25"),
    "reasoning_parser": ("none", "none"),
    "tensor_parallel": ("2", 2),
    "data_parallel": ("3", 3),
}
# The folder is that of `model`; SGLang's logs follow ours; weights are always loaded.
OTHERS = {"folder", "log_level", "load_format"}


@pytest.fixture
def options(tiny_model: Callable[[str], Path]) -> Callable[..., SglangOptions]:
    def options(*arguments: str) -> SglangOptions:
        settings = TargetSettings(_cli_parse_args=[f"--model={tiny_model('tinyq')}", *arguments])  # type: ignore[call-arg]
        return engine_options(settings)

    return options


def test_no_option_is_forgotten() -> None:
    assert VALUES.keys() == {field.name for field in fields(SglangOptions)} - OTHERS


@pytest.mark.parametrize("name", VALUES)
def test_the_setting_is_the_engines_option(options: Callable[..., SglangOptions], name: str) -> None:
    given, expected = VALUES[name]
    assert getattr(options(), name) != expected
    option = name.replace("_", "-")
    argument = f"--no-{option}" if given is None else f"--{option}={given}"
    assert getattr(options(argument), name) == expected


def test_the_engine_logs_what_it_does_only_to_find_faults(options: Callable[..., SglangOptions]) -> None:
    assert options().log_level == "error"
    assert options("--log-level=DEBUG").log_level == "info"
