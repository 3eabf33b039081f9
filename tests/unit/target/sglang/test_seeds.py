"""Seeded draws: repeatable, of the right distribution, and independent of what else is in the batch."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from presift.models.torchvision_ops import declare_missing  # noqa: E402
from presift.target.sglang import seeds  # noqa: E402
from presift.target.sglang.seeds import (  # noqa: E402
    around_forward_batch_generation,
    around_sample_from_probs,
    instead_of_multinomial_with_seed,
    seeds_of,
    without_unlikely,
)
from presift.target.sglang_plugin.sglang_names import installed, seeding_functions  # noqa: E402


def logprobs(rows: int) -> torch.Tensor:
    return torch.log(torch.tensor([[0.7, 0.2, 0.1, 0.0]])).repeat(rows, 1)


def draws(row_seeds: list[int], positions: list[int]) -> list[int]:
    rows = logprobs(len(row_seeds))
    drawn = instead_of_multinomial_with_seed(rows, torch.tensor(row_seeds), torch.tensor(positions))
    return drawn.squeeze(1).tolist()


def test_the_same_seed_and_position_draw_the_same() -> None:
    assert draws([3] * 50, list(range(50))) == draws([3] * 50, list(range(50)))


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    alone = [draws([9], [position])[0] for position in range(50)]
    among = [draws([1, 9, 2], [0, position, 5])[1] for position in range(50)]
    assert alone == among


def test_seeds_and_positions_draw_differently() -> None:
    assert draws([1] * 50, list(range(50))) != draws([2] * 50, list(range(50)))
    assert draws([1] * 50, list(range(50))) != draws([1] * 50, list(range(50, 100)))


def test_frequencies_are_the_probabilities() -> None:
    drawn = draws([5] * 4000, list(range(4000)))
    assert [drawn.count(token) / 4000 for token in range(4)] == pytest.approx([0.7, 0.2, 0.1, 0.0], abs=0.03)


def test_min_p_leaves_out_what_is_unlikely_beside_the_most_likely() -> None:
    probabilities = torch.tensor([[0.1, 0.6, 0.3], [0.1, 0.6, 0.3]])
    kept = without_unlikely(probabilities, torch.tensor([0.0, 0.4])).tolist()
    assert kept[0] == probabilities[0].tolist()
    assert kept[1] == pytest.approx([0.0, 0.6, 0.3])


def requests(*own: int | None) -> list[Any]:
    return [
        SimpleNamespace(rid=f"r{place}", sampling_params=SimpleNamespace(sampling_seed=seed))
        for place, seed in enumerate(own)
    ]


def test_no_seeds_where_no_request_has_one() -> None:
    assert seeds_of(requests(None, None), "cpu") is None
    assert seeds_of([], "cpu") is None


def test_beside_a_seed_every_row_has_one_that_its_own_request_decides() -> None:
    found = seeds_of(requests(7, None, -1, None), "cpu")
    assert found is not None
    assert found.dtype == torch.int64
    assert found.tolist()[::2] == [7, -1]
    # The same without the other rows, and not the same for two requests.
    assert seeds_of([requests(None, None)[1], *requests(3)], "cpu").tolist()[0] == found.tolist()[1]
    assert found.tolist()[1] != found.tolist()[3] >= 0


def forwarded(own: tuple[int | None, ...], given: Any = None) -> Any:
    batch = SimpleNamespace(reqs=requests(*own), device="cpu", sampling_info=SimpleNamespace(sampling_seed=given))
    passed = around_forward_batch_generation(
        lambda worker, batch, *_, **others: (batch, others), "worker", batch, is_verify=False
    )
    assert passed == (batch, {"is_verify": False})
    return batch.sampling_info.sampling_seed


def test_a_forward_pass_has_seeds_only_if_a_request_has_one() -> None:
    assert forwarded((None, None)) is None
    assert forwarded((None, 5)).tolist()[1] == 5
    # Those of SGLang's deterministic mode stay.
    assert forwarded((None, 5), "its own") == "its own"
    assert around_forward_batch_generation(lambda worker, batch: batch, "worker", None) is None


@pytest.fixture(scope="module")
def sampler() -> Iterator[Any]:
    """SGLang's sampler module, whose draws are those of a plain CPU."""
    if find_spec("sglang") is None:
        pytest.skip("needs SGLang")
    declare_missing()
    from sglang.srt.layers import sampler as module

    before, module.multinomial_with_seed = module.multinomial_with_seed, instead_of_multinomial_with_seed
    yield module
    module.multinomial_with_seed = before


def sampled(own: Any, *, top_ks: list[int], min_ps: list[float] | None = None, mask: Any = None) -> Any:
    rows = len(top_ks)
    info = SimpleNamespace(
        sampling_seed=None if own is None else torch.tensor(own),
        sampling_mask_batch_indices=mask,
        top_ks=torch.tensor(top_ks),
        top_ps=torch.ones(rows),
        min_ps=torch.tensor(min_ps or [0.0] * rows),
        need_min_p_sampling=min_ps is not None,
    )
    probabilities = torch.tensor([[0.1, 0.3, 0.2, 0.4]]).repeat(rows, 1)
    answer = around_sample_from_probs(
        lambda *_: "SGLang's own", object(), probabilities, info, torch.arange(rows), False
    )
    return answer if isinstance(answer, str) else answer[0].tolist()


def test_a_batch_without_seeds_is_sampled_by_sglang() -> None:
    assert sampled(None, top_ks=[2]) == "SGLang's own"
    assert sampled([1], top_ks=[2], mask=torch.tensor([0])) == "SGLang's own"


def test_a_seeded_row_draws_the_same_whatever_the_others_ask_for(sampler: Any) -> None:
    everything = 1 << 30
    alone = sampled([5] * 40, top_ks=[everything] * 40)
    beside = sampled([5] * 40 + [6], top_ks=[everything] * 40 + [2])
    unlikely = sampled([5] * 40 + [6], top_ks=[everything] * 41, min_ps=[0.0] * 40 + [0.9])
    assert alone == beside[:40] == unlikely[:40]
    assert len(set(alone)) == 4
    # min_p 0.9 leaves the most likely token.
    assert unlikely[40] == 3
    assert set(sampled([5] * 40, top_ks=[2] * 40)) == {1, 3}


@pytest.mark.parametrize("is_plain_cpu", [True, False])
def test_only_a_plain_cpu_draws_by_a_function_of_presift(
    monkeypatch: pytest.MonkeyPatch, sampler: Any, is_plain_cpu: bool
) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    functions = seeding_functions(installed())
    multinomial = functions.pop("instead_of_multinomial_with_seed")
    wanted = {path: (getattr(seeds, name), HookType.AROUND) for name, path in functions.items()}
    drawn = {multinomial: (instead_of_multinomial_with_seed, HookType.REPLACE)}
    registered: dict[str, Any] = {}
    monkeypatch.setattr(HookRegistry, "register", lambda target, hook, kind: registered.update({target: (hook, kind)}))
    monkeypatch.setattr(HookRegistry, "apply_hooks", lambda: None)
    monkeypatch.setattr(HookRegistry, "_patched", {multinomial, *functions.values()})
    seeds.register(is_plain_cpu)
    assert registered == (wanted | drawn if is_plain_cpu else wanted)

    # SGLang only logs what it cannot hook.
    monkeypatch.setattr(HookRegistry, "_patched", {multinomial})
    with pytest.raises(RuntimeError, match=r"did not hook .*Sampler\._sample_from_probs"):
        seeds.register(is_plain_cpu)


@pytest.mark.parametrize(
    ("owner", "name"),
    [("sampler.Sampler", "_sample_from_probs"), ("sampler", "top_k_top_p_min_p_sampling_from_probs_torch")],
)
def test_a_renamed_function_is_the_reason_and_nothing_is_hooked(
    monkeypatch: pytest.MonkeyPatch, sampler: Any, owner: str, name: str
) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry

    assert seeds.why_unsupported() is None
    monkeypatch.delattr(f"sglang.srt.layers.{owner}.{name}")
    assert seeds.why_unsupported() == f"SGLang {installed()} has no sglang.srt.layers.{owner}.{name}"
    monkeypatch.setattr(HookRegistry, "register", lambda *hook: pytest.fail(f"registered: {hook}"))
    seeds.register(True)


def test_the_hooked_functions_have_the_arguments_that_the_hooks_name(sampler: Any) -> None:
    import inspect
    import pkgutil

    parameters = {
        hook: list(inspect.signature(pkgutil.resolve_name(path)).parameters)
        for hook, path in seeding_functions(installed()).items()
    }
    assert parameters["around_forward_batch_generation"][:2] == ["self", "batch"]
    assert parameters["around_sample_from_probs"][:4] == ["self", "probs", "sampling_info", "positions"]
