"""Leases in Redis: renewed as long as any is held, whichever are claimed and released in between."""

import asyncio

from presift.orchestrator.admission.concurrency_limit import MemoryConcurrencyLimit, RedisConcurrencyLimit


class FakeRedis:
    """Grants everything, and records the commands."""

    def __init__(self):
        self.commands = []

    async def execute(self, *command, timeout_s):
        self.commands.append(command[0])
        return 1


async def test_a_claim_just_after_the_last_release_is_renewed():
    redis = FakeRedis()
    limit = RedisConcurrencyLimit(redis, ttl_s=0.03)
    assert await limit.claim("acme", "first", 5)
    await limit.release("acme", "first")  # the renewing task is cancelled, but has not ended yet
    assert await limit.claim("acme", "second", 5)
    redis.commands.clear()
    async with asyncio.timeout(10):
        while redis.commands.count("EVAL") < 2:
            await asyncio.sleep(0.005)
    await limit.release("acme", "second")
    await limit.aclose()


async def test_without_a_lease_nothing_is_renewed():
    redis = FakeRedis()
    limit = RedisConcurrencyLimit(redis, ttl_s=0.03)
    before = asyncio.all_tasks()
    assert await limit.claim("acme", "first", 5) and limit.held == 1
    await limit.release("acme", "first")
    assert limit.held == 0
    await asyncio.sleep(0.05)
    assert asyncio.all_tasks() == before and redis.commands == ["EVAL", "ZREM"]


async def test_leases_in_memory_are_counted_over_all_tenants():
    limit = MemoryConcurrencyLimit()
    for tenant in ("acme", "other"):
        assert await limit.claim(tenant, "first", 5)
    assert limit.held == 2
    await limit.release("acme", "first")
    assert limit.held == 1
