"""Peers that run in environments of their own: their processes, and what they are asked."""

import sys
from pathlib import Path

import pytest
from peers.child import started
from peers.kv_presses import KvPress
from peers.longllmlingua import LongLlmLingua
from peers.passages import shorten

from presift_client import InvalidRequest

CHILDREN = Path(__file__).parents[2] / "bench" / "peers" / "children"
SCRIPT = f"""
import os, sys
sys.path.insert(0, {str(CHILDREN)!r})
from json_lines import serve
print("noise of a library")
if sys.argv[1:] == ["lame"]:
    sys.exit("no weights")
def answer(request):
    print("more noise")
    if request["do"] == "die":
        os.write(2, b"out of memory\\n")
        os._exit(3)
    if request["do"] == "allocate":
        len(b"x" * 80_000_000)
    return {{"text": request["text"] if request["do"] == "say" else ""}}
serve((), answer)
"""


@pytest.fixture
def script(tmp_path):
    python = tmp_path / ".venv-fake" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return str(path)


async def test_lines_go_to_and_fro(script, tmp_path):
    async with started("fake", script, root=tmp_path) as child:
        assert await child.ask({"do": "say", "text": "line\n\u2028ü"}) == {"text": "line\n\u2028ü"}
        with pytest.raises(InvalidRequest, match="fake: KeyError: 'text'"):
            await child.ask({"do": "say"})
        assert await child.ask({"do": "say", "text": "x" * 200_000}) == {"text": "x" * 200_000}


async def test_the_peak_is_that_of_the_largest_request(script, tmp_path):
    async with started("fake", script, root=tmp_path) as child:
        await child.ask({"do": "allocate"})
        most = child.peak_mib
        child.peak_mib = None
        await child.ask({"do": "nothing"})
        assert most > child.peak_mib + 60


async def test_a_child_that_ends_says_why(script, tmp_path):
    async with started("fake", script, root=tmp_path) as child:
        with pytest.raises(ValueError, match="fake ended with status 3: out of memory"):
            await child.ask({"do": "die"})
        with pytest.raises(ValueError, match="fake ended with status 3"):
            await child.ask({"do": "say", "text": ""})
    with pytest.raises(ValueError, match="fake ended with status 1: no weights"):
        async with started("fake", script, "lame", root=tmp_path):
            pass


async def test_a_missing_environment_names_what_makes_it(tmp_path):
    with pytest.raises(ValueError, match=r"peer kvpress needs its packages in .*\.venv-kvpress.*; run: make peers"):
        async with started("kvpress", "kv_presses.py", root=tmp_path):
            pass


class Answers:
    """A child that answers from a list, or by a function of the request."""

    def __init__(self, answer):
        self.asked = []
        self.peak_mib = None
        self._answer = answer

    async def ask(self, request):
        self.asked.append(request)
        return self._answer(request)


async def count(prompt):
    """Words."""
    return sum(len(message["content"].split()) for message in prompt["messages"])


def keeps(factor):
    """A compressor that keeps `factor` times as many words as it was told, which takes a millisecond for each."""

    def answer(request):
        words = " ".join(request["passages"]).split()[: round(factor * request["target_tokens"])]
        return {"text": " ".join(words), "ms": float(len(words))}

    return answer


PROMPT = {"messages": [{"role": "user", "content": "a b c d e.\n\n" * 40 + "What is c?"}]}


@pytest.mark.parametrize(("factor", "attempts"), [(1, 1), (1.3, 2), (0.5, 2), (4, 3)])
async def test_longllmlingua_is_asked_again_until_it_is_near_the_budget(factor, attempts):
    child = Answers(keeps(factor))
    shortened, took_ms = await shorten(PROMPT, LongLlmLingua(child), 103, count)
    content = shortened["messages"][0]["content"]
    assert content.endswith("\n\nWhat is c?") and 95 <= await count(shortened) - 3 <= 100
    assert (len(child.asked), took_ms) == (attempts, await count(shortened) - 3)
    assert child.asked[0] == {"passages": ["a b c d e."] * 40, "question": "What is c?", "target_tokens": 100}


async def test_longllmlingua_that_never_fits_keeps_nothing():
    child = Answers(lambda _: {"text": "x " * 500, "ms": 1.0})
    shortened, took_ms = await shorten(PROMPT, LongLlmLingua(child), 103, count)
    assert (await count(shortened), took_ms, len(child.asked)) == (3, 0, 3)


async def test_a_press_gets_the_document_apart_from_the_question():
    answer = {"text": "4", "token_ids": [7], "prompt_tokens": 50, "kv_tokens": 25, "completion_tokens": 2,
              "finish_reason": "stop", "ttft_ms": 1.0, "total_ms": 2.0}  # fmt: skip
    child = Answers(lambda _: answer)
    content = [{"text": "doc. ", "document": True}, {"text": "why?\nreally?"}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    found = await KvPress(child, "snapkv").answer(messages, 25, 8)
    (request,) = child.asked
    system, user = request["messages"]
    assert system == messages[0] and user["content"].split(request["separator"]) == ["doc. ", "why?\nreally?"]
    assert (request["press"], request["kv_tokens"], request["max_new_tokens"]) == ("snapkv", 25, 8)
    assert (found.token_ids, found.kv_tokens) == ((7,), 25)
