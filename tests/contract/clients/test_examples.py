"""The Python examples, run as scripts against a real orchestrator."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest

import presift
import presift_client
from presift.core.errors import Overloaded
from presift.orchestrator.api.auth.interceptor import AuthInterceptor

from ..fakes.api_keys import ACME, key_authenticator
from ..fakes.services import raises
from ..fakes.stack import ALL_ROUTES, byte_tokenizer

EXAMPLES = Path(__file__).parents[3] / "clients" / "python" / "examples"
PLACES = os.pathsep.join(str(Path(package.__file__).parents[1]) for package in (presift, presift_client))


async def start(name, *arguments, key=""):
    """Start the example as a process."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        str(EXAMPLES / name),
        *map(str, arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": PLACES} | ({"PRESIFT_API_KEY": key} if key else {}),
    )


async def run(name, *arguments, key=""):
    """Run the example. Returns exit code, lines of stdout, text of stderr."""
    process = await start(name, *arguments, key=key)
    async with asyncio.timeout(120):
        out, errors = await process.communicate()
    return process.returncode, out.decode().splitlines(), errors.decode()


async def test_ask_a_document(stack, tmp_path):
    (tmp_path / "document.txt").write_text("d" * 200)
    code, lines, errors = await run("ask_a_document.py", tmp_path / "document.txt", "why?", stack.address)
    assert (code, errors) == (0, "") and lines[0].startswith("full, kept ")
    assert "?yhw" in "\n".join(lines)  # the fake answers with the prompt reversed


@pytest.mark.parametrize("arguments", [(), ("--help",), ("a", "b", "c", "d")])
async def test_ask_a_document_prints_its_usage(arguments):
    code, lines, errors = await run("ask_a_document.py", *arguments)
    assert (code, lines) == (1, []) and "python ask_a_document.py FILE QUESTION [ADDRESS]" in errors
    assert "Traceback" not in errors


@pytest.fixture
def folder(tmp_path):
    """Three files; one that matches the pattern mentions owls."""
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds" / "owls.txt").write_text("Owls hunt by night.\n\nAn owl hears a mouse under snow.")
    (tmp_path / "fish.txt").write_text("Fish swim.")
    (tmp_path / "owls.md").write_text("Owls, but in a file that is not searched.")
    return tmp_path


async def test_rag_finds_the_passage(stack, folder):
    code, lines, errors = await run("rag_over_a_folder.py", folder, "when do owls hunt?", "--address", stack.address)
    assert (code, errors) == (0, "")
    assert lines[0].startswith("1 passages; full, kept ") and lines[-1] == "[1] birds/owls.txt"


async def test_rag_drops_from_passages_only(stack, folder):
    (folder / "long.txt").write_text("owls " * 60)
    ask = ("rag_over_a_folder.py", folder, "owls hunt?", "--address", stack.address, "--max-prompt-tokens", 330)
    code, lines, errors = await run(*ask)
    assert (code, errors) == (0, "") and lines[0].startswith("2 passages; spec_pc, kept 272 of ")
    read = byte_tokenizer().decode(stack.target.calls[-1].token_ids)
    assert read.startswith("<system>Answer from the passages, in a few sentences")
    assert "[1] birds/owls.txt" in read and "[2] long.txt" in read and read.endswith("owls hunt?</user><assistant>")
    assert read.count("owls ") < 60


async def test_rag_without_a_match_says_so(stack, folder):
    code, lines, errors = await run("rag_over_a_folder.py", folder, "zebras", "--address", stack.address)
    assert code == 1 and not lines and "has a word of the question" in errors and not stack.target.calls


def write(path, *requests):
    path.write_text(
        "".join(f"{request if isinstance(request, str) else json.dumps(request)}\n" for request in requests)
    )


def answers(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({line["id"] for line in lines}) == len(lines)
    return {line["id"]: line for line in lines}


async def batch(stack, folder, *flags, key=""):
    return await run("batch.py", folder / "in.jsonl", folder / "out.jsonl", "--address", stack.address, *flags, key=key)


async def test_batch_answers_each_line_and_resumes(stack, tmp_path):
    requests = [{"id": f"q{n}", "token_ids": [n, n + 1], "max_new_tokens": 2} for n in range(1, 9)]
    write(tmp_path / "in.jsonl", *requests[:3], {"id": "bad", "token_ids": [1] * 500, "route": "full"}, "")
    code, lines, errors = await batch(stack, tmp_path)
    assert (code, errors, lines) == (0, "", ["0 were done, 4 are new, 0 are left"])
    first = answers(tmp_path / "out.jsonl")
    assert first["bad"]["error"]["kind"] == "PromptTooLong" and "500" in first["bad"]["error"]["message"]
    assert first["q1"]["decision"]["route"] == "full" and first["q1"]["usage"]["completion_tokens"] == 2
    write(tmp_path / "in.jsonl", *requests, {"id": "typo", "token_ids": [1], "max_tokens": 5})
    calls = len(stack.target.calls)
    code, lines, _ = await batch(stack, tmp_path)
    assert (code, lines) == (0, ["4 were done, 6 are new, 0 are left"]) and len(stack.target.calls) == calls + 5
    then = answers(tmp_path / "out.jsonl")
    assert first.items() <= then.items() and then["typo"]["error"]["kind"] == "TypeError"


async def test_batch_limits_concurrency(stack, tmp_path):
    write(tmp_path / "in.jsonl", *({"id": str(n), "token_ids": [n + 1, 2]} for n in range(9)))
    stack.target.pause_after = 1
    task = asyncio.create_task(batch(stack, tmp_path, "--concurrency", 3))
    await stack.settle(lambda: stack.target.running == 3)
    await asyncio.sleep(0.3)
    assert stack.target.running == 3
    stack.target.gate.set()
    assert (await task)[0] == 0 and len(answers(tmp_path / "out.jsonl")) == 9


async def test_batch_retries_if_the_service_is_overloaded(stack, tmp_path):
    write(tmp_path / "in.jsonl", {"id": "q", "token_ids": [1, 2]})
    stack.target.faults.append(raises(Overloaded("max_waiting", "64", "64", 0.2)))
    assert (await batch(stack, tmp_path))[0] == 0
    assert len(stack.target.calls) == 2 and "text" in answers(tmp_path / "out.jsonl")["q"]


async def test_batch_gives_up_after_some_retries(stack, tmp_path):
    write(tmp_path / "in.jsonl", {"id": "q", "token_ids": [1, 2]})
    stack.target.faults.extend(raises(Overloaded("max_waiting", "64", "64", 0.01)) for _ in range(99))
    code, lines, errors = await batch(stack, tmp_path)
    assert (code, lines) == (1, ["0 were done, 0 are new, 1 are left"]) and errors.startswith("q: ")
    assert answers(tmp_path / "out.jsonl") == {}


async def test_an_authentication_error_is_not_written_as_an_answer(open_stack, tmp_path):
    stack = await open_stack(auth_interceptors=(AuthInterceptor(key_authenticator()),), salt="deployment")
    write(tmp_path / "in.jsonl", {"id": "q", "token_ids": [1, 2]})
    assert (await batch(stack, tmp_path))[0] == 1 and answers(tmp_path / "out.jsonl") == {}
    assert (await batch(stack, tmp_path, key=ACME))[0] == 0 and "text" in answers(tmp_path / "out.jsonl")["q"]


async def test_a_killed_batch_resumes(stack, tmp_path):
    """A crash may leave an incomplete last line."""
    write(tmp_path / "in.jsonl", *({"id": str(n), "token_ids": [n + 1, 2]} for n in range(6)))
    stack.target.pause_after = 1
    process = await start("batch.py", tmp_path / "in.jsonl", tmp_path / "out.jsonl", "--address", stack.address)
    await stack.settle(lambda: stack.target.running == 6)
    process.send_signal(signal.SIGKILL)
    await process.communicate()
    await stack.settle(lambda: stack.target.running == 0)
    stack.target.gate.set()
    (tmp_path / "out.jsonl").write_text('{"id": "0", "text": "x"}\n{"id": "1", "te')
    code, lines, _ = await batch(stack, tmp_path)
    assert (code, lines) == (0, ["1 were done, 5 are new, 0 are left"])
    assert len(answers(tmp_path / "out.jsonl")) == 6


@pytest.mark.parametrize("line", ["{", "[1]", '{"id": 5, "prompt": "x"}', '{"prompt": "x"}'])
async def test_batch_names_an_invalid_line(stack, tmp_path, line):
    write(tmp_path / "in.jsonl", "", line)
    code, _, errors = await batch(stack, tmp_path)
    assert code == 2 and "line 2: a request is a JSON object" in errors and "Traceback" not in errors


async def test_batch_without_its_file(stack, tmp_path):
    code, _, errors = await batch(stack, tmp_path)
    assert code == 2 and "in.jsonl" in errors and "Traceback" not in errors


async def test_many_questions_wait_for_the_first(open_stack, tmp_path):
    stack = await open_stack(routes=ALL_ROUTES)
    (tmp_path / "document.txt").write_text("d" * 120)
    ask = (tmp_path / "document.txt", "why?", "how?", "when?", "--max-kv-tokens", 200, "--address", stack.address)
    stack.target.pause_after = 1
    task = asyncio.create_task(run("many_questions.py", *ask))
    await stack.settle(lambda: stack.target.running == 1)
    await asyncio.sleep(0.2)
    assert stack.target.running == 1  # the first is sent alone
    stack.target.gate.set()
    code, lines, errors = await task
    assert (code, errors) == (0, "")
    assert [line for line in lines if line.endswith("?")] == ["why?", "how?", "when?"]
    assert sum(line.startswith("  [") and line.endswith("KV tokens held]") for line in lines) == 3


async def test_many_questions_name_the_failed_one(stack, tmp_path):
    (tmp_path / "document.txt").write_text("d" * 120)
    long = "y" * 400
    code, lines, errors = await run(
        "many_questions.py", tmp_path / "document.txt", "why?", long, "--address", stack.address
    )
    assert code == 1 and "why?" in lines and errors.strip().splitlines()[0] == long
