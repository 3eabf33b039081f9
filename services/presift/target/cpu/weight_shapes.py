"""Weights in the shapes of the checkpoint.

Wherever a model runs on a CPU, SGLang enlarges its heads and its feed-forward sizes to what its own CPU kernels and
the number of ranks want: 48 rows of an expert become 64. Only its own CPU engine sets the added weights to zero. On
presift's platform they would be uninitialised memory, and answers would be wrong.
"""

from __future__ import annotations

from typing import Any


def keep() -> None:
    """Turn that off in this process. SGLang then refuses sizes that its ranks cannot share.

    Raises RuntimeError if SGLang has renamed what is replaced: wrong answers are worse than none.
    """
    from sglang.srt.configs import update_config  # noqa: PLC0415 - heavy

    for name, instead in (("get_num_heads_padding_size", _one), ("update_intermediate_size", _unchanged)):
        if not hasattr(update_config, name):
            raise RuntimeError(f"presift cannot load weights on a CPU: SGLang has no {update_config.__name__}.{name}")
        setattr(update_config, name, instead)


def _one(*_: Any, **__: Any) -> int:
    return 1


def _unchanged(model_config: Any, *_: Any, **__: Any) -> Any:
    return model_config
