"""Peers shorten prompts to a budget, and keep what presift protects."""

import pytest
from peers import registry
from peers.bm25 import Bm25, bm25
from peers.compare import arms
from peers.passages import divide, sentences, shorten
from peers.registry import Models, Places
from peers.truncation import Truncation

from presift.cli.evaluation.arms import BASELINE
from presift.models.folder import ModelFolder
from presift_client import Info, Model

TEXT = "".join(f"Fact {number} is about n{number}. It is long.\n" for number in range(40))
QUESTION = "What is about n17?"
PROMPT = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": TEXT + QUESTION}]}


async def count(prompt):
    """Words."""
    return sum(len(message["content"].split()) for message in prompt["messages"])


@pytest.mark.parametrize("peer", [Truncation(), Bm25()])
@pytest.mark.parametrize("text", [TEXT, "", "one", "a b\n\n\n c. d! " * 200, "no end " * 300])
def test_pieces_make_the_text_and_all_are_ranked(peer, text):
    pieces = peer.pieces(text)
    assert "".join(pieces) == text and sorted(peer.ranked(pieces, QUESTION)) == list(range(len(pieces)))


def test_passages_are_of_whole_sentences():
    found = sentences("One two. " * 120)
    assert all(len(passage.split()) <= 100 for passage in found) and len(found) == 3
    assert sentences("a. b\nc") == ["a. b\n", "c"]


@pytest.mark.parametrize("peer", [Truncation(), Bm25()])
@pytest.mark.parametrize("most", [40, 100, 200])
async def test_the_budget_is_kept_and_used(peer, most):
    shortened, took_ms = await shorten(PROMPT, peer, most, count)
    system, user = shortened["messages"]
    assert system == PROMPT["messages"][0] and user["content"].endswith(QUESTION)
    assert most - 8 < await count(shortened) <= most and took_ms > 0


async def test_a_prompt_that_fits_is_unchanged():
    assert await shorten(PROMPT, Bm25(), 1000, count) == (PROMPT, 0)


async def test_a_budget_below_what_is_protected_keeps_the_question():
    _, user = (await shorten(PROMPT, Truncation(), 1, count))[0]["messages"]
    assert user["content"] == QUESTION


async def test_bm25_keeps_what_the_question_is_about():
    _, user = (await shorten(PROMPT, Bm25(), 60, count))[0]["messages"]
    assert "Fact 17 is about n17." in user["content"]


async def test_truncation_keeps_both_ends():
    _, user = (await shorten(PROMPT, Truncation(), 60, count))[0]["messages"]
    assert "Fact 0 " in user["content"] and "n39" in user["content"] and "n17." not in user["content"]


def test_bm25_by_hand():
    """Two words in two documents of equal length: idf of "rare" is ln(1 + 1.5 / 1.5), of "the" ln(1 + 0.5 / 2.5)."""
    first, second = bm25([["the", "rare"], ["the", "cat"]], ["the", "rare", "rare"])
    assert (first, second) == pytest.approx((0.6931 + 0.1823, 0.1823), abs=1e-4)


def test_marked_documents_are_shortened_and_nothing_else():
    content = [{"text": "doc. ", "document": True}, {"text": "why?\nreally?"}]
    divided = divide({"messages": [{"role": "user", "content": content}]})
    assert (divided.document, divided.question) == ("doc. ", "why?\nreally?")
    with pytest.raises(ValueError, match="a plain text has no question of its own"):
        divide({"prompt": "x"})


def test_arms():
    found = arms("spec_pc", "25%,512", "bm25,sglang")
    assert [arm.name for arm in found] == ["full", "spec_pc 25%", "spec_pc 512", "bm25 25%", "bm25 512", "sglang"]
    assert found[3].options(1000) == {"route": "full", "max_prompt_tokens": 250}
    assert found[5].options(1000) == {"route": "full"} and not found[5].is_relative
    with pytest.raises(ValueError, match="peers has 'bm26'; each must be one of truncation, bm25, "):
        arms("spec_pc", "25%", "bm26")
    with pytest.raises(ValueError, match="budgets has 'default', which peers do not have"):
        arms("spec_pc", "25%,default", "bm25")
    assert BASELINE not in found[1:]


def test_a_model_that_is_not_the_stacks_is_refused(tmp_path, monkeypatch):
    models = Models(Info(None, Model("org/big", "r1", 4096), ("full",), 0), Places(tmp_path))
    with pytest.raises(ValueError, match=r"models is .*, which has no folder big; the stack's target is org/big"):
        models.target()
    with pytest.raises(ValueError, match="needs the weights of a draft; the stack has none"):
        models.draft()
    (tmp_path / "big").mkdir()
    monkeypatch.setattr(registry, "resolve", lambda _: ModelFolder(tmp_path / "big", "big", "r2", ""))
    with pytest.raises(ValueError, match="whose big has revision r2; the stack's target has r1"):
        models.target()
