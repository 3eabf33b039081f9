"""The longest stall of the event loop: what is recorded, for how long, and that every service exports it."""

import asyncio
import time

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from presift.draft.settings import DraftSettings
from presift.rpc.server import run
from presift.telemetry import gauges, metrics
from presift.telemetry.loop_stalls import LoopStalls

STALL_S = 0.3


@given(st.lists(st.tuples(st.floats(0, 30), st.floats(0, 5)), max_size=30))
def test_the_longest_stall_of_the_last_minute_is_reported(stalls):
    now_s, ended = 0.0, []
    meter = LoopStalls(lambda: now_s)
    for later_s, stall_s in stalls:
        now_s += later_s
        meter.add(stall_s)
        ended.append((now_s, stall_s))
        assert meter.longest_s() == max(stall for when, stall in ended if when >= now_s - 60)
    now_s += 61
    assert meter.longest_s() == 0


def test_a_service_reports_a_callback_that_blocks_its_loop(monkeypatch):
    reader = InMemoryMetricReader()
    monkeypatch.setattr(metrics.metrics, "get_meter", MeterProvider(metric_readers=[reader]).get_meter)
    monkeypatch.setattr(run.logs, "set_up", lambda level, look, on_drop: None)
    gauges._instrument.cache_clear()
    found = []

    def longest():
        (metric,) = reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
        assert metric.name == "presift.loop.stall"
        return metric.data.data_points[0].value

    async def serve(settings):
        await asyncio.sleep(0.05)
        time.sleep(STALL_S)
        await asyncio.sleep(0.05)
        found.append(longest())
        return True

    assert run.run("draft", DraftSettings(_cli_parse_args=["--model=m"]), serve) == 0
    gauges._instrument.cache_clear()
    assert found[0] >= STALL_S - 0.02
