"""`build_app`: what the settings say reaches the edges and the tuning."""

import pytest

from presift.cache.build_lock import NoBuildLock
from presift.cache.redis_build_lock import RedisBuildLock
from presift.orchestrator import app
from presift.orchestrator.config.reload import policy_source
from presift.orchestrator.config.settings import OrchestratorSettings


@pytest.fixture
async def built(monkeypatch):
    """settings -> the edges and the tuning that `build_app` wires; all are closed at the end."""
    edges = []
    monkeypatch.setattr(app, "wire", lambda *both: both)

    def built(**values):
        settings = OrchestratorSettings(_cli_parse_args=False, **values)
        made, tuning = app.build_app(settings, policy_source(settings))
        edges.append(made)
        return made, tuning

    yield built
    for each in edges:
        for closable in (each.draft, each.target, *each.closables, each.store):
            await closable.aclose()


async def test_the_hedge_delay_reaches_the_draft(built):
    edges, _ = built(draft_hedge_after_s=0.25)
    assert edges.draft._hedge_after_s == 0.25


@pytest.mark.parametrize(("url", "lock"), [("redis://127.0.0.1:1", RedisBuildLock), ("memory://", NoBuildLock)])
async def test_orchestrators_that_share_a_cache_share_a_build_lock(built, url, lock):
    edges, _ = built(cache_url=url)
    assert type(edges.lock) is lock


async def test_cached_values_are_authenticated_with_the_salt(built):
    edges, _ = built(cache_url="redis://127.0.0.1:1", tenant_salt="xylophone")
    assert edges.store._salt == edges.lock._values._salt == "xylophone"


async def test_limits_of_the_queue_and_thresholds_are_the_settings(built):
    _, tuning = built(max_running=3, max_waiting=5, max_requests_mib=7, guard_off_below=0.125, guard_least_samples=9)
    queue, thresholds = tuning.queue, tuning.thresholds
    assert (queue.max_running, queue.max_waiting, queue.max_bytes) == (3, 5, 7 * 2**20)
    assert (thresholds.off_below, thresholds.least_samples) == (0.125, 9)
