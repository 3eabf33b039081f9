"""Seeded draws: repeatable, of the right distribution, and independent of what else is in the batch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from presift.target.cpu.seeds import add_seeds, around_filtered_sampling, draw  # noqa: E402


def logprobs(rows: int) -> torch.Tensor:
    return torch.log(torch.tensor([[0.7, 0.2, 0.1, 0.0]])).repeat(rows, 1)


def draws(seeds: list[int], positions: list[int]) -> list[int]:
    rows = logprobs(len(seeds))
    return draw(rows, torch.tensor(seeds), torch.tensor(positions)).squeeze(1).tolist()


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

    def original(probs: torch.Tensor, *others: object) -> tuple[object, ...]:
        return probs.tolist(), *others

    kept, top_ks, top_ps, _, needs_min_p, seed = around_filtered_sampling(
        original, probabilities, "k", "p", torch.tensor([0.0, 0.4]), True, "seed"
    )
    assert kept[0] == probabilities[0].tolist()
    assert kept[1] == pytest.approx([0.0, 0.6, 0.3])
    assert (top_ks, top_ps, needs_min_p, seed) == ("k", "p", False, "seed")


def test_every_request_of_a_batch_gets_a_seed_its_own_if_it_has_one() -> None:
    requests = [SimpleNamespace(sampling_params=SimpleNamespace(sampling_seed=seed)) for seed in (7, None, -1)]
    info = add_seeds(SimpleNamespace(), object, SimpleNamespace(reqs=requests, device="cpu"), 4)

    assert info.sampling_seed.tolist()[::2] == [7, -1]
    assert info.sampling_seed.dtype == torch.int64
