"""/tokenize and /detokenize, with the names of SGLang's and of vLLM's server."""

import asyncio

import pytest

from presift.orchestrator.api.http import tokenizing

from ..fakes.services import CONTEXT


@pytest.fixture
async def api(open_stack, open_http_api):
    return await open_http_api(await open_stack())


@pytest.mark.parametrize("path", ["/tokenize", "/v1/tokenize"])
async def test_a_text(api, path):
    answer = await api.post({"model": "target", "prompt": "abc"}, path)
    ids = api.stack.tokenizer.backend.encode("abc").ids
    assert answer.json() == {"tokens": ids, "count": 3, "max_model_len": CONTEXT}


async def test_several_texts_and_the_tokens_as_strings(api):
    answer = await api.post({"prompt": ["abc", ""], "return_token_strs": True, "colour": 1}, "/tokenize")
    body = answer.json()
    assert body["count"] == [3, 0] and body["tokens"][1] == [] and body["token_strs"] == [["a", "b", "c"], []]
    assert body["presift"] == {"ignored": ["colour"]}


async def test_a_chat_is_what_a_chat_reads(api):
    chat = {"model": "target", "messages": [{"role": "user", "content": "abc"}]}
    chat["tools"] = [{"type": "function", "function": {"name": "add"}}]
    answer = await api.post(chat | {"add_special_tokens": False}, "/tokenize")
    await api.post(chat | {"max_tokens": 1})
    assert answer.json()["tokens"] == list(api.stack.target.calls[-1].token_ids)
    plain = await api.post(chat | {"tools": None}, "/tokenize")
    assert plain.json()["count"] < answer.json()["count"]


async def test_nothing_asked_of_a_variable_that_the_template_lacks_is_named(api):
    chat = {"messages": [{"role": "user", "content": "abc"}]}
    answer = await api.post(chat | {"chat_template_kwargs": {"enable_thinking": False}}, "/tokenize")
    assert answer.json()["presift"] == {"ignored": ["chat_template_kwargs.enable_thinking"]}
    assert answer.json()["tokens"] == (await api.post(chat, "/tokenize")).json()["tokens"]


@pytest.mark.parametrize("path", ["/detokenize", "/v1/detokenize"])
async def test_back_to_text(api, path):
    ids = api.stack.tokenizer.backend.encode("naïve").ids
    for tokens, text in ((ids, "naïve"), ([ids, []], ["naïve", ""]), ([], "")):
        answer = await api.post({"model": "target", "tokens": tokens}, path)
        assert answer.json() == {"text": text, "prompt": text}


REFUSED = {
    "neither": ("/tokenize", {}, "prompt"),
    "both": ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
    "token ids": ("/tokenize", {"prompt": [1, 2]}, "prompt"),
    "no list": ("/tokenize", {"prompt": []}, "prompt"),
    "a role": ("/tokenize", {"messages": [{"role": "x", "content": "a"}]}, "messages[0].role"),
    "a number": ("/tokenize", {"prompt": "a", "add_special_tokens": 1}, "add_special_tokens"),
    "no tokens": ("/detokenize", {}, "tokens"),
    "text": ("/detokenize", {"tokens": "abc"}, "tokens"),
    "mixed": ("/detokenize", {"tokens": [[1], 2]}, "tokens"),
    "negative": ("/detokenize", {"tokens": [-1]}, "tokens"),
    "an unknown id": ("/detokenize", {"tokens": [5000]}, "tokens"),
    "a boolean": ("/detokenize", {"tokens": [True]}, "tokens"),
}


@pytest.mark.parametrize(("path", "body", "param"), REFUSED.values(), ids=REFUSED)
async def test_what_is_refused_is_named(api, path, body, param):
    answer = await api.post(body, path)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


async def test_a_prompt_beside_messages_is_to_be_left_out(api):
    refused = (await api.post(REFUSED["both"][1], "/tokenize")).json()["error"]
    assert refused["message"] == "prompt is given; it must be left out beside messages"


async def test_another_model_and_a_long_chat(api):
    assert (await api.post({"model": "other", "prompt": "a"}, "/tokenize")).status_code == 404
    answer = await api.post({"prompt": "a" * 2**20}, "/tokenize")
    assert answer.status_code == 413


async def test_a_call_counts_until_it_has_ended(api):
    await api.post({"prompt": "a"}, "/tokenize")
    assert api.stack.server.calls.running == 0 and api.stack.admission.running == 0


@pytest.fixture
def run(api, monkeypatch):
    """The sizes of what was let into the tokenizer, in order; `gate` holds it there."""
    limit, sizes = api.stack.tokenizer.limit, []
    run.gate = asyncio.Event()
    run.gate.set()
    original = limit.run

    async def recorded(work, size):
        sizes.append(size)
        await run.gate.wait()
        return await original(work, size)

    monkeypatch.setattr(limit, "run", recorded)
    run.sizes = sizes
    return run


async def test_it_happens_within_the_limit_of_all_texts(api, run):
    await api.post({"prompt": ["abc", "é"]}, "/tokenize")
    await api.post({"tokens": [65] * 100}, "/detokenize")
    await api.post({"messages": [{"role": "user", "content": "a" * 10_000}]}, "/tokenize")
    texts, ids, chat, its_answer = run.sizes
    assert texts == 5 and ids >= 100 and chat > 10_000 and its_answer > 10_000


async def test_few_run_at_once_and_tenants_take_turns(api, run):
    """A tenant that counts tokens all the time delays neither prompts nor other tenants' calls."""
    queue = api.stack.pipeline.parts.tokenizing
    run.gate.clear()

    def ask(tenant, text):
        return asyncio.create_task(api.post({"prompt": text}, "/tokenize", presift_tenant=tenant))

    calls = []
    for number in range(5):
        calls.append(ask("greedy", "a" * 4000))
        await api.stack.settle(lambda number=number: queue.running + queue.waiting == number + 1)
    calls.append(ask("other", "a" * 8))
    await api.stack.settle(lambda: queue.waiting == 4)
    assert queue.running == 2 and run.sizes == [4000] * 2
    assert (await api.stack.ask([4, 5], max_new_tokens=3)).token_ids, "an answer does not wait for them"
    run.gate.set()
    assert [(await call).status_code for call in calls] == [200] * 6
    assert run.sizes.index(8) <= 3 and queue.running == queue.waiting == 0


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [("/tokenize", {"prompt": ["abc", "de"]}, "prompt"), ("/detokenize", {"tokens": [[65] * 3, [66] * 2]}, "tokens")],
)
async def test_more_tokens_than_a_prompt_may_have_are_refused(api, monkeypatch, path, body, param):
    monkeypatch.setattr(tokenizing, "MAX_PROMPT_TOKENS", 4)
    answer = await api.post(body, path)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param) and "at most 4" in error["presift"]["limit"]
