"""The platform class for a plain CPU. SGLang imports it only if `platform.activate` names it."""

from __future__ import annotations

from typing import Any

from sglang.srt.platforms.cpu import CpuDeviceMixin
from sglang.srt.platforms.device_mixin import PlatformEnum
from sglang.srt.platforms.interface import SRTPlatform

# SGLang's memory pools import the platform, so they are imported on use.
# ruff: noqa: PLC0415


class CpuPlatform(CpuDeviceMixin, SRTPlatform):  # type: ignore[misc]
    """A CPU without sgl_kernel: PyTorch's attention, the ordinary KV pool, each operator's `native` forward."""

    # Not PlatformEnum.CPU: that value makes SGLang look for sgl_kernel's CPU operators.
    _enum = PlatformEnum.OOT
    device_name = "presift_cpu"
    device_type = "cpu"

    def init_backend(self) -> None:
        """SGLang calls it in each process that will load weights, before it does."""
        from presift.target.cpu import weight_shapes

        weight_shapes.keep()

    def get_default_attention_backend(self) -> str:
        return "torch_native"

    def get_mha_kv_pool_cls(self) -> type[Any]:
        from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

        return MHATokenToKVPool  # type: ignore[no-any-return]

    def get_paged_allocator_cls(self) -> Any:
        return _allocator

    def get_dispatch_key_name(self) -> str:
        return "native"


def _allocator(size: int, *, page_size: int, **others: Any) -> Any:
    """The allocator of a pool of `size` KV slots in pages of `page_size` tokens. SGLang calls it as a class."""
    if page_size > 1:
        from presift.target.cpu.paged_allocator import CpuPagedAllocator

        return CpuPagedAllocator(size, page_size, **others)
    from sglang.srt.mem_cache.allocator.token import TokenToKVPoolAllocator

    return TokenToKVPoolAllocator(size, **others)
