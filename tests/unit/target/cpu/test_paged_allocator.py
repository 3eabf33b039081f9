"""The CPU's allocator of pages: each position of a request has its place in a page, and no page is lost or shared."""

from __future__ import annotations

import random
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from presift.models.torchvision_ops import declare_missing

pytestmark = pytest.mark.skipif(find_spec("sglang") is None, reason="needs SGLang")

PAGES = 40
POOL: dict[str, Any] = {"dtype": torch.float32, "device": "cpu", "kvcache": None, "need_sort": False}


def allocator_of(page_tokens: int, pages: int = PAGES) -> Any:
    declare_missing()
    import sglang.srt.mem_cache.allocator.paged  # noqa: F401 - first, because SGLang imports the platform itself

    from presift.target.cpu.device import _allocator

    return _allocator(pages * page_tokens, page_size=page_tokens, **POOL)


def extend(allocator: Any, rows: list[list[int]], new: list[int]) -> bool:
    """Give each row so many more slots. False if there is no room."""
    before = torch.tensor([len(row) for row in rows])
    after = before + torch.tensor(new)
    last = torch.tensor([row[-1] if row else -1 for row in rows])
    is_decode = all(count == 1 for count in new)
    if is_decode:
        slots = allocator.alloc_decode(after, after, last)
    else:
        slots = allocator.alloc_extend(before, before, after, after, last, sum(new))
    if slots is None:
        return False
    for row, more in zip(rows, slots.split(new), strict=True):
        row.extend(more.tolist())
    return True


@pytest.mark.parametrize("page_tokens", [2, 16, 64])
def test_any_requests_in_any_order(page_tokens: int) -> None:
    allocator, dice = allocator_of(page_tokens), random.Random(page_tokens)
    rows: list[list[int]] = []
    refused = 0
    for _ in range(300):
        act = dice.choice(["begin", "extend", "decode", "free"])
        if act == "free" and rows:
            allocator.free_segment(torch.tensor(rows.pop(dice.randrange(len(rows)))), start_pos=0)
        elif act == "begin":
            begun: list[list[int]] = [[] for _ in range(dice.randrange(1, 4))]
            if extend(allocator, begun, [dice.randrange(1, 4 * page_tokens) for _ in begun]):
                rows += begun
            else:
                refused += 1
        elif rows:
            counts = [1 if act == "decode" else dice.randrange(1, 2 * page_tokens) for _ in rows]
            refused += not extend(allocator, rows, counts)
        pages = [slot // page_tokens for row in rows for slot in row[::page_tokens]]
        for row in rows:
            assert [slot % page_tokens for slot in row] == [place % page_tokens for place in range(len(row))]
            heads = [row[place // page_tokens * page_tokens] for place in range(len(row))]
            assert [slot // page_tokens for slot in row] == [head // page_tokens for head in heads]
        assert len(set(pages)) == len(pages)
        assert set(pages) <= set(range(1, PAGES + 1))
        assert allocator.available_size() == (PAGES - len(pages)) * page_tokens
    assert refused > 5


def test_without_room_nothing_is_taken() -> None:
    allocator = allocator_of(4, pages=2)
    row: list[int] = []
    assert not extend(allocator, [row], [9])
    assert (row, allocator.available_size()) == ([], 8)
    assert extend(allocator, [row], [8])
    assert not extend(allocator, [row], [1])
    assert (len(row), allocator.available_size()) == (8, 0)


def test_the_rest_of_a_page_needs_no_free_page() -> None:
    allocator = allocator_of(4, pages=1)
    row: list[int] = []
    for count in (2, 1, 1):
        assert extend(allocator, [row], [count])
    assert (row, allocator.available_size()) == ([4, 5, 6, 7], 0)


def test_pages_of_one_token_have_sglangs_own() -> None:
    assert type(allocator_of(1)).__name__ == "TokenToKVPoolAllocator"
