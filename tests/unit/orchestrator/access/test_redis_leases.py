"""Leases in Redis: prolonged as long as any is held, whoever comes and goes in between."""

import asyncio

from presift.orchestrator.admission.concurrency_limit import MemoryConcurrencyLimit, RedisConcurrencyLimit


class Link:
    """Says yes, and counts what it is asked."""

    def __init__(self):
        self.asked = []

    async def ask(self, *command, timeout_s):
        self.asked.append(command[0])
        return 1


async def test_a_claim_in_the_moment_of_the_last_release_is_prolonged():
    link = Link()
    leases = RedisConcurrencyLimit(link, ttl_s=0.03)
    assert await leases.claim("acme", "first", 5)
    await leases.release("acme", "first")  # its prolonging is cancelled and has not heard of it yet
    assert await leases.claim("acme", "second", 5)
    link.asked.clear()
    async with asyncio.timeout(10):
        while link.asked.count("EVAL") < 2:
            await asyncio.sleep(0.005)
    await leases.release("acme", "second")
    await leases.aclose()


async def test_without_a_lease_nothing_is_prolonged():
    link = Link()
    leases = RedisConcurrencyLimit(link, ttl_s=0.03)
    before = asyncio.all_tasks()
    assert await leases.claim("acme", "first", 5) and leases.held == 1
    await leases.release("acme", "first")
    assert leases.held == 0
    await asyncio.sleep(0.05)
    assert asyncio.all_tasks() == before and link.asked == ["EVAL", "ZREM"]


async def test_leases_in_memory_are_counted_over_all_tenants():
    leases = MemoryConcurrencyLimit()
    for tenant in ("acme", "other"):
        assert await leases.claim(tenant, "first", 5)
    assert leases.held == 2
    await leases.release("acme", "first")
    assert leases.held == 1
