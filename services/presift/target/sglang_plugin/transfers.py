"""Copies between host and device for which nobody waits before the values are used.

A read of the device in the scheduler's thread waits for all that was queued before it, with overlapped scheduling for
the whole forward pass that has just been launched.
"""

from __future__ import annotations

from typing import Any

import torch


class HostCopy:
    """A tensor's values on the host. The copy is queued in the current stream, behind what computes them."""

    def __init__(self, source: torch.Tensor) -> None:
        self._values = source
        self._copied: Any = None
        if source.device.type != "cpu":
            # Pinned: otherwise the copy itself waits for the device.
            self._values = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
            self._values.copy_(source, non_blocking=True)
            self._copied = torch.get_device_module(source.device).Event()
            self._copied.record()

    @property
    def values(self) -> torch.Tensor:
        """The values, on the CPU. Waits for the work of the stream up to the copy, and for nothing behind it."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values


def to_device(values: torch.Tensor, device: Any) -> torch.Tensor:
    """`values`, which lie on the CPU or there already, on `device`. The host does not wait for the copy."""
    if torch.device(device).type == values.device.type:
        return values
    pinned = values.pin_memory() if torch.accelerator.is_available() else values
    return pinned.to(device, non_blocking=True)


def wait_for_stream(stream: Any, device: Any) -> None:
    """Let the current stream wait for all that was queued in `stream`, a stream of `device`. The host does not wait."""
    if torch.device(device).type != "cpu":
        torch.get_device_module(device).current_stream().wait_stream(stream)


def keep_until_read(tensor: torch.Tensor) -> None:
    """Let the memory of `tensor`, made in another stream, last until the current stream has read it.

    Its last reference may go before: the host does not wait for the reads that it has queued.
    """
    if tensor.device.type != "cpu":
        tensor.record_stream(torch.get_device_module(tensor.device).current_stream())
