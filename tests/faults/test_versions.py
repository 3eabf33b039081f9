"""An earlier version's orchestrators, drafts, targets, clients and cached values together with this version's.

`make versions OLD=<git ref>` runs all mixes, an upgrade under load and a rollback; a share runs by default.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import redis.asyncio as redis

from presift_client import AsyncClient, Generation

from .bare_stack import with_tokenizer
from .results import Results
from .stack import Member, Plan, Stack, code_of
from .traffic import HEAD_TOKENS, Book, Oracle, prompt_of
from .upgrade import NUMBERS, Patient, Pulse, UpgradeRow, calling_http, order_of
from .versions import (
    NEW,
    NoEarlierVersion,
    Version,
    ask_http,
    differences,
    earlier_commit,
    grpc_calls,
    http_calls,
    shortcomings,
    stored,
    unpack,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
_FLAGS = ("--no-calibrate", "--guard-share=0", "--http-listen=127.0.0.1:0")
# What is protected of a chat with a tool must fit, and a draft that stands still is waited for. "auto" would choose by
# the speeds that an orchestrator has seen.
_SAME_CHOICES = (
    *("--capacity=230", "--kv-capacity=220", "--cascade-capacity=260"),
    *("--draft-timeout-s=60", "--kv-lookahead=draft"),
)
# So long a service has served before the next one is replaced.
_BETWEEN_S = 2.0
_fresh = count(3_000_000)
VERSIONS = ("old", "new")
# Drafts and targets are upgraded first, so this is what an upgrade comes to before its last step.
_SHARE = ("new", "new")
MIXES = [
    pytest.param(draft, target, id=f"{draft} draft, {target} target", marks=marks)
    for draft in VERSIONS
    for target in VERSIONS
    for marks in ([] if (draft, target) == _SHARE else [pytest.mark.faults],)
]


@pytest.fixture(scope="module")
def old(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Version:
    """The earlier version. Without `--old`, a clone that lacks it skips; a ref that was asked for must be there."""
    wanted = pytestconfig.getoption("--old", None)
    try:
        commit = earlier_commit(wanted)
    except NoEarlierVersion as missing:
        if wanted:
            raise
        pytest.skip(f"old and new versions NOT TESTED together: {missing}")
    return Version("old", code_of(unpack(commit, tmp_path_factory.mktemp("old"))))


class Mixes:
    """Drafts and targets of both versions, each started when it is first needed, and one cache."""

    def __init__(self, stack: Stack, old: Version, link: redis.Redis) -> None:
        self.stack, self.link = stack, link
        self.versions = {"old": old, "new": NEW}
        self.answers: list[tuple[str, list[Any]]] = []

    async def orchestrators(self, draft: str, target: str) -> dict[str, str]:
        """One of each version on that draft and that target: names of the services. Ends those of another mix."""
        stack, mix = self.stack, f"{draft}-{target}"
        names = {"draft": f"draft-{draft}", "target": f"target-{target}"}
        await self._need(names["draft"], lambda: stack.draft(self.versions[draft].code))
        await self._need(names["target"], lambda: stack.target(self.versions[target].code))
        for name in [name for name in stack.members if name.startswith("orchestrator") and not name.endswith(mix)]:
            await stack.end(name)
            del stack.members[name]
        for version in VERSIONS:
            code, name = self.versions[version].code, f"orchestrator-{version}-{mix}"
            make = partial(stack.orchestrator, code, [names["draft"]], [names["target"]])
            await self._need(name, make)
            names[version] = name
        return names

    async def ask(self, name: str, client: Version) -> list[Any]:
        """All calls at that orchestrator, one after another."""
        told = await client.call(self.stack.proxies[name].address, grpc_calls())
        address = self.stack.members[name].running.http_address
        async with httpx.AsyncClient(base_url=f"http://{address}", timeout=60, trust_env=False) as http:
            return told + [await ask_http(http, path, body) for path, body in http_calls()]

    async def _need(self, name: str, make: Callable[[], Member]) -> None:
        if name not in self.stack.members:
            await self.stack.add(name, make())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mixes(
    old: Version, tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Mixes]:
    logs = tmp_path_factory.mktemp("mixes")
    model = with_tokenizer(tiny_model("tinyq"), logs / "model")
    plan = Plan(
        model,
        logs,
        drafts=0,
        targets=0,
        orchestrators=0,
        orchestrator_flags=(*_FLAGS, *_SAME_CHOICES, f"--tokenizer={model}"),
        cache_ttl_s=600,
        cache_timeout_s=1.0,
        direct_cache=True,
        tokenizer=model,
    )
    async with Stack(plan) as stack, redis.Redis.from_url(stack.cache.url) as link:
        yield Mixes(stack, old, link)


@pytest.mark.parametrize(("draft", "target"), MIXES)
async def test_old_and_new_answer_alike(mixes: Mixes, draft: str, target: str) -> None:
    """Each orchestrator is asked by the other version's client: the first one with an empty cache, then the second."""
    names = await mixes.orchestrators(draft, target)
    for first, second in (VERSIONS, VERSIONS[::-1]):
        await mixes.link.flushall()
        cold = await mixes.ask(names[first], mixes.versions[second])
        values = await stored(mixes.link)
        warm = await mixes.ask(names[second], mixes.versions[first])
        after = await stored(mixes.link)
        mixes.answers += [(f"{first} with {draft} draft and {target} target", cold), (f"{second} after it", warm)]
        assert outcomes(cold)["hit"] == 0 and outcomes(cold)["miss"] > 0
        assert values and values.items() <= after.items(), "a value was deleted or replaced"
        assert outcomes(warm)["miss"] <= len(after) - len(values), "a value of its own format was not read"
    _, expected = mixes.answers[0]
    for mix, answers in mixes.answers:
        assert shortcomings(answers) == [], mix
        found = [differences(*pair) for pair in zip(expected, answers, strict=True)]
        assert not any(found), (mix, found)


def outcomes(answers: list[Any]) -> Counter[str]:
    """What the cache did for each answer over gRPC."""
    return Counter(each["decision"]["cache"] for each in answers if "decision" in each)


@pytest.mark.parametrize("first", VERSIONS)
async def test_an_old_and_a_new_orchestrator_build_a_value_once(mixes: Mixes, first: str) -> None:
    """The draft stands still until both have asked."""
    names = await mixes.orchestrators(*_SHARE)
    draft, (second,) = names["draft"], set(VERSIONS) - {first}
    await mixes.link.flushall()
    before, ids = mixes.stack.proxies[draft].calls, prompt_of(next(_fresh))
    mixes.stack.signal(draft, signal.SIGSTOP)
    try:
        holder = asyncio.create_task(masked(mixes.stack.proxies[names[first]].address, ids))
        async with asyncio.timeout(30):
            while not await mixes.link.keys("presift:*:lease"):
                await asyncio.sleep(0.02)
        waiter = asyncio.create_task(masked(mixes.stack.proxies[names[second]].address, ids))
        await asyncio.sleep(0.3)  # a draft that stands still for 4 s is given up
    finally:
        mixes.stack.signal(draft, signal.SIGCONT)
    answers = await asyncio.gather(holder, waiter)
    # Two formats have two values, and each is built once.
    values = await stored(mixes.link)
    assert mixes.stack.proxies[draft].calls - before == len(values)
    assert [answer.decision.cache for answer in answers] == (["miss", "hit"] if len(values) == 1 else ["miss", "miss"])
    assert answers[0].token_ids == answers[1].token_ids


async def masked(address: str, token_ids: list[int]) -> Generation:
    """An answer that needs a mask."""
    async with AsyncClient(address) as client:
        return await client.generate(
            token_ids=token_ids,
            protected_spans=[(0, HEAD_TOKENS)],
            route="spec_pc",
            max_new_tokens=4,
            ignore_eos=True,
            deadline_s=60,
        )


@pytest.mark.faults
@pytest.mark.timeout(3600)
async def test_an_upgrade_and_a_rollback_lose_no_call(
    old: Version, tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory, results: Results
) -> None:
    """Two of each service, replaced one after another, drafts and targets first: by the new version, then by the old
    one."""
    logs = tmp_path_factory.mktemp("upgrade")
    flags = (*_FLAGS, "--draft-timeout-s=60")  # a shared machine is slow while services start
    plan = Plan(tiny_model("tinyq"), logs, drafts=2, targets=2, orchestrator_flags=flags, code=old.code)
    oracle, rows = Oracle(), results.upgrade
    async with Stack(plan) as stack:
        async with AsyncClient(stack.addresses[0]) as client:
            await oracle.learn(client, NUMBERS)
        calls = Patient(stack.addresses, oracle).asking()
        # Each step with how many calls had ended before it. A call belongs to the step in which it ends: the end of a
        # service meets calls that began earlier.
        steps, stalls = list[tuple[str, int, int]](), list[float]()
        async with calls as book, calling_http(stack) as http, Pulse().measuring() as pulse:
            for version in (NEW, old):
                for name in sorted(stack.members, key=order_of):
                    steps.append((f"{name}: {version.name}", len(book.calls), len(http)))
                    await stack.end(name)
                    stack.members[name].environment |= version.code
                    await stack.launch(name)
                    await asyncio.sleep(_BETWEEN_S)
                    stalls.append(pulse.take_s())
    ends = [*steps[1:], ("the end", len(book.calls), len(http))]
    for (step, first, first_http), (_, end, end_http), stall_s in zip(steps, ends, stalls, strict=True):
        rows.append(UpgradeRow.of(step, Book(book.calls[first:end]), http[first_http:end_http], stall_s))
    assert [complaint for row in rows for complaint in row.complaints()] == []
