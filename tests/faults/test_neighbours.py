"""Whatever tenant A does, tenant B's answers begin no later than twice as late as without it, and A uses no more tokens
than its quota."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio

from presift.orchestrator.api.auth.api_keys import new_entry, new_key

from .bare_stack import BareStack, bare_stack, with_tokenizer
from .neighbours import FIRST_TOKEN_S, TOKEN_S, NeighbourRow, QuietTenant, play
from .noise import MAX_CALLS, SCENARIOS, Scenario
from .results import Results

B = "quiet"


@dataclass(frozen=True)
class Tenants:
    """A running stack and the keys of its tenants."""

    stack: BareStack
    keys: dict[str, str]


@pytest.fixture(scope="module")
def tenants(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenants]:
    logs = tmp_path_factory.mktemp("neighbours")
    keys = {tenant: new_key() for tenant in (B, *(scenario.tenant for scenario in SCENARIOS))}
    limits = {scenario.tenant: {"tokens_per_minute": scenario.tokens_per_minute} for scenario in SCENARIOS}
    entries = [new_entry(key, tenant) for tenant, key in keys.items()]
    (logs / "keys.json").write_text(json.dumps({"keys": entries, "tenants": limits}))
    flags = [f"--first-token-s={FIRST_TOKEN_S}", f"--token-s={TOKEN_S}"]
    model = with_tokenizer(tiny_model("tinyq"), logs / "model")
    ours = [f"--api-keys-file={logs / 'keys.json'}", f"--max-calls={MAX_CALLS}"]
    with bare_stack(model, logs, target_flags=flags, orchestrator_flags=ours) as stack:
        yield Tenants(stack, keys)
        assert stack.errors() == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def quiet(tenants: Tenants) -> AsyncIterator[QuietTenant]:
    """Tenant B, warm, and the first that the target hears."""
    tenant = QuietTenant(tenants.stack.address("orchestrator"), tenants.keys[B])
    await tenant.listen()
    yield tenant
    await tenant.aclose()


@pytest.mark.faults
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("scenario", SCENARIOS, ids=[scenario.tenant for scenario in SCENARIOS])
async def test_a_noisy_neighbour(tenants: Tenants, quiet: QuietTenant, results: Results, scenario: Scenario) -> None:
    row = await play(tenants.stack, scenario, tenants.keys, quiet)
    results.neighbours.append(row)
    assert row.complaints() == []


_SCENARIO = replace(SCENARIOS[0], tokens_per_minute=1000)
FINE = NeighbourRow(_SCENARIO, [0.1, 0.1], [0.15, 0.15], 9, Counter(), Counter(answered=1), 1400, 0.5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, []),
        ({"noisy_s": [0.1, 0.5]}, ["B's 95th percentile is 3.00 times its quiet value"]),
        ({"wrong": Counter(Overloaded=2)}, ["B: Overloaded 2"]),
        ({"tokens": 1501}, ["A used 1501 tokens of 1500"]),
        ({"outcomes": Counter(OVERLOADED=7)}, ["no call of A was answered: {'OVERLOADED': 7}"]),
    ],
)
def test_what_is_complained_of(change: dict[str, object], said: list[str]) -> None:
    assert replace(FINE, **change).complaints() == said  # type: ignore[arg-type]
