"""Every limit at its maximum, over gRPC and HTTP, at real processes: the event loop never stands still for long, and a
byte that arrives takes a bounded number of bytes of memory."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.message import Message

from presift.core.limits import Limit

from ..contract.fakes.stack import Refusal
from . import limit_senders
from .bare_stack import BareStack, bare_stack, with_tokenizer
from .limit_senders import FIXED_BYTES, HTTP, METHODS, STALL_S, Case, cases, numbers, tables
from .results import LimitRow, Results

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's high-water mark")

TIMEOUT_S = 120


@dataclass
class Services:
    """Connections to all services. `told` is the last refusal."""

    stack: BareStack
    channels: dict[str, grpc.Channel]
    http: httpx.Client
    told: str = ""

    def send(self, case: Case, made: Message | dict[str, Any]) -> tuple[int, Callable[[], str]]:
        """The bytes of the request, and what sends it: returns "answered" or the reason of the refusal."""
        if isinstance(made, Message):
            raw = made.SerializeToString()
            return len(raw), lambda: self._call(case, raw)
        path = made.pop("path")
        content = json.dumps(made, separators=(",", ":")).encode()
        return len(content), lambda: self._post(path, content)

    def _call(self, case: Case, raw: bytes) -> str:
        call = self.channels[case.service].unary_stream(f"/presift.v1.{case.method}")
        try:
            for _ in call(raw, timeout=TIMEOUT_S, metadata=case.metadata):
                pass
        except grpc.RpcError as failure:
            self.told = str(Refusal.of(failure))
            return Refusal.of(failure).reason or self.told
        return "answered"

    def _post(self, path: str, content: bytes) -> str:
        answer = self.http.post(path, content=content, headers={"content-type": "application/json"})
        if answer.status_code == httpx.codes.OK:
            return "answered"
        self.told, error = answer.text, answer.json()["error"]
        return str(error.get("presift", {}).get("reason", error["code"]))


@pytest.fixture(scope="module")
def services(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    logs = tmp_path_factory.mktemp("limits")
    model = with_tokenizer(tiny_model("tinyq"), logs / "model")
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_metadata_size", 2**20)]
    with bare_stack(model, logs) as stack:
        channels = {name: grpc.insecure_channel(stack.address(name), options) for name in stack.processes}
        with httpx.Client(base_url=f"http://{stack.http_address}", timeout=TIMEOUT_S) as http:
            yield Services(stack, channels, http)
        for channel in channels.values():
            channel.close()
        assert stack.errors() == []


def measured(services: Services, case: Case) -> LimitRow:
    """Send the request of this case, and look at its service meanwhile."""
    size, send = services.send(case, case.make())
    services.stack.take_stall_s(case.service)
    before = services.stack.reset_peak(case.service)
    outcome = send()
    stall_s, grown = services.stack.take_stall_s(case.service), services.stack.peak_bytes(case.service) - before
    most = FIXED_BYTES + case.bytes_per_byte * size
    return LimitRow(case.name, case.method, size, outcome, stall_s, grown, most, case.stall_s)


CASES = cases()


@pytest.mark.parametrize("case", CASES, ids=[f"{case.method} {case.name}" for case in CASES])
def test_a_request_at_its_limit(services: Services, results: Results, case: Case) -> None:
    row = measured(services, case)
    results.limits.append(row)
    assert row.outcome == case.outcome, services.told
    assert row.complaints() == []


def test_large_explanations_are_made_one_after_another(services: Services) -> None:
    """Otherwise a caller who asks for a few at once could fill the orchestrator."""
    case = next(each for each in CASES if each.name.startswith("explained spans") and each.method == HTTP)
    callers = 6
    one = measured(services, case).grown_bytes
    sends = [services.send(case, case.make())[1] for _ in range(callers)]
    before = services.stack.reset_peak(case.service)
    with ThreadPoolExecutor(callers) as threads:
        outcomes = Counter(threads.map(lambda send: send(), sends))
    grown = services.stack.peak_bytes(case.service) - before
    assert outcomes == {"answered": callers}, services.told
    rendered = callers * 48 * 2**20  # bodies that are not sent yet
    assert grown < one + rendered + FIXED_BYTES


def without_senders() -> list[str]:
    """The rows and the numbers that no request is sent for, and the requests whose limit is gone."""
    of_methods = [table for method in METHODS for table in method.tables]
    found = [name for name, table in tables().items() if not any(table is each for each in of_methods)]
    for method in METHODS:
        found += [f"{method.name} {field} {unit}" for field, unit in method.rows.keys() ^ method.senders.keys()]
    return sorted([*found, *(numbers() ^ limit_senders.OTHERS.keys())])


def test_every_limit_has_a_sender() -> None:
    assert without_senders() == []


def test_a_new_row_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from presift.draft import limits

    monkeypatch.setattr(limits, "NEW", (Limit("new", 1, "things", len),), raising=False)
    monkeypatch.setattr(limits, "MAX_NEW", 123_456, raising=False)
    assert without_senders() == ["MAX_NEW", "draft.limits.NEW"]


def test_the_loop_is_watched(services: Services) -> None:
    """The measure sees work of the loop: an idle service has next to none, and a batch of prompts some."""
    services.stack.take_stall_s("orchestrator")
    idle_s = services.stack.take_stall_s("orchestrator")
    case = next(each for each in CASES if each.name.startswith("prompts"))
    assert idle_s < STALL_S / 10 < measured(services, case).stall_s


@pytest.mark.parametrize("service", ["draft", "orchestrator"])
def test_collections_leave_out_what_a_service_has_loaded(services: Services, service: str) -> None:
    """Also what is imported after the start: transformers and torch are most of 300,000 objects, which take 0.1 s."""
    assert services.stack.frozen_objects(service) > 200_000


def test_what_is_complained_of() -> None:
    row = LimitRow("x", "HTTP", 2**20, "answered", 0.02, 80 * 2**20, 160 * 2**20)
    assert row.complaints() == []
    assert replace(row, stall_s=0.2).complaints() == ["the event loop stood still for 200 ms of processor time"]
    assert "memory grew by 200 MiB" in replace(row, grown_bytes=200 * 2**20).complaints()[0]
