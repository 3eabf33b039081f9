"""Copies that nobody waits for: on a CPU there is none, on a device they are queued and waited for when used."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from presift.target.sglang_plugin import transfers  # noqa: E402 - it needs torch
from presift.target.sglang_plugin.transfers import HostCopy, keep_until_read, to_device, wait_for_stream  # noqa: E402


def test_on_a_cpu_nothing_is_copied() -> None:
    values = torch.arange(3)
    assert HostCopy(values).values is values
    assert to_device(values, "cpu") is values
    keep_until_read(values)


class Source:
    """A tensor on a device: what is done with it, in order."""

    device, shape, dtype = torch.device("meta"), (3,), torch.float32

    def __init__(self) -> None:
        self.events: list[Any] = []

    def record_stream(self, stream: Any) -> None:
        self.events.append(("record_stream", stream))


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Source:
    tensor = Source()
    add = tensor.events.append
    event = SimpleNamespace(record=lambda: add("record"), synchronize=lambda: add("synchronize"))
    module = SimpleNamespace(Event=lambda: event, current_stream=lambda: "this stream")
    pinned = SimpleNamespace(copy_=lambda source, non_blocking: add(("copy", source is tensor, non_blocking)))
    monkeypatch.setattr(transfers.torch, "get_device_module", lambda device: module)
    monkeypatch.setattr(transfers.torch, "empty", lambda shape, dtype, pin_memory: pinned if pin_memory else None)
    return tensor


def test_a_copy_to_the_host_is_queued_and_waited_for_when_it_is_used(source: Source) -> None:
    copy = HostCopy(source)  # type: ignore[arg-type]
    assert source.events == [("copy", True, True), "record"]
    assert copy.values is copy._values
    assert source.events[2:] == ["synchronize"]


def test_a_tensor_lasts_until_this_stream_has_read_it(source: Source) -> None:
    keep_until_read(source)  # type: ignore[arg-type]
    assert source.events == [("record_stream", "this stream")]


def test_this_stream_waits_for_another_and_the_host_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[Any] = []
    stream = SimpleNamespace(wait_stream=waited.append)
    monkeypatch.setattr(
        transfers.torch, "get_device_module", lambda device: SimpleNamespace(current_stream=lambda: stream)
    )
    wait_for_stream("another", torch.device("cpu"))
    assert waited == []
    wait_for_stream("another", torch.device("meta"))
    assert waited == ["another"]


@pytest.mark.parametrize("has_device", [True, False])
def test_a_copy_to_the_device_is_from_pinned_memory(monkeypatch: pytest.MonkeyPatch, has_device: bool) -> None:
    values = torch.arange(3)
    pinned: list[Any] = []
    monkeypatch.setattr(transfers.torch.accelerator, "is_available", lambda: has_device)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    copied = to_device(values, "meta")
    assert copied.device.type == "meta"
    assert to_device(copied, "meta") is copied
    assert len(pinned) == has_device
