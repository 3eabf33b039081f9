"""Whole and streamed answers as OpenAI's own client reads them: tool calls, reasoning, log probabilities, several
answers and prompts."""

import json
from types import SimpleNamespace

import openai
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState

from presift.core.answer import AnswerFormat, TokenLogprob, ToolCallDelta, ToolChoice
from presift.core.errors import TargetUnavailable
from presift.core.generation import FinishReason, Grammar, GrammarKind
from presift.orchestrator.api.http.schema import MAX_IGNORED
from presift.orchestrator.pipeline.events import Delta

from ..fakes.scripted_pipeline import ScriptedHttpApi, decision, report

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("add", "multiply")
]
CALLED = [
    decision(),
    Delta("I add. ", (1, 2)),
    Delta("", (3,), tool_calls=(ToolCallDelta(0, "call_1", "add", ""),)),
    Delta("", (4,), tool_calls=(ToolCallDelta(0, arguments='{"a": '), ToolCallDelta(0, arguments="1}"))),
    Delta("", (5,), tool_calls=(ToolCallDelta(1, "call_2", "multiply", "{}"),)),
    report(completion_tokens=5, reason=FinishReason.TOOL_CALLS),
]
REASONED = [
    decision(),
    Delta("", (1,), reasoning="let me "),
    Delta("", (2,), reasoning="think"),
    Delta("four", (3,)),
    report(completion_tokens=4, reasoning_tokens=2),
]


def accumulated(chunks):
    """What OpenAI's own client makes of a stream."""
    state = ChatCompletionStreamState()
    for chunk in chunks:
        state.handle_chunk(chunk)
    return state.get_final_completion()


async def test_tool_calls():
    answer = await ScriptedHttpApi(CALLED).chat(tools=TOOLS)
    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I add. ")
    calls = [(call.id, call.type, call.function.name, call.function.arguments) for call in choice.message.tool_calls]
    assert calls == [("call_1", "function", "add", '{"a": 1}'), ("call_2", "function", "multiply", "{}")]


async def test_tool_calls_without_a_text_have_no_content():
    answer = await ScriptedHttpApi([decision(), *CALLED[2:]]).chat(tools=TOOLS)
    assert answer.choices[0].message.content is None and len(answer.choices[0].message.tool_calls) == 2


async def test_streamed_tool_calls():
    chunks = await ScriptedHttpApi(CALLED).chat(tools=TOOLS, stream=True)
    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert [(each.index, each.id, each.type) for each in deltas] == [
        (0, "call_1", "function"), (0, None, None), (1, "call_2", "function"),
    ]  # fmt: skip
    assert [each.function.arguments for each in deltas] == ["", '{"a": 1}', "{}"]
    whole = accumulated(chunks)
    assert [call.function.arguments for call in whole.choices[0].message.tool_calls] == ['{"a": 1}', "{}"]
    assert whole.choices[0].finish_reason == "tool_calls"


CHOICES = {
    "nothing": (None, ToolChoice.AUTO, "", ["add", "multiply"]),
    "auto": ("auto", ToolChoice.AUTO, "", ["add", "multiply"]),
    "none": ("none", ToolChoice.AUTO, "", []),
    "required": ("required", ToolChoice.REQUIRED, "", ["add", "multiply"]),
    "named": ({"type": "function", "function": {"name": "add"}}, ToolChoice.FUNCTION, "add", ["add"]),
}


@pytest.mark.parametrize(("choice", "wanted", "function", "shown"), CHOICES.values(), ids=CHOICES)
async def test_tool_choices(choice, wanted, function, shown):
    """The prompt shows the tools that may be called, as SGLang's server does."""
    api = ScriptedHttpApi(CALLED)
    await api.chat(tools=TOOLS, **({} if choice is None else {"tool_choice": choice}), parallel_tool_calls=False)
    request = api.request
    shown_json, separated = request.prompt.tools_json, request.answer_format
    assert separated == AnswerFormat(shown_json, wanted, function, single_call=bool(shown), separate_reasoning=True)
    assert [json.loads(tool)["function"]["name"] for tool in request.prompt.tools_json] == shown


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
@pytest.mark.parametrize(("kind", "ignored"), [("json_object", ["response_format"]), ("text", None)])
async def test_a_forced_call_wins_over_a_format(choice, kind, ignored):
    api = ScriptedHttpApi(CALLED)
    answer = await api.chat(tools=TOOLS, tool_choice=choice, response_format={"type": kind})
    assert api.request.sampling.grammar is None and answer.presift.get("ignored") == ignored


async def test_reasoning():
    answer = await ScriptedHttpApi(REASONED).chat()
    message = answer.choices[0].message
    assert (message.reasoning_content, message.content) == ("let me think", "four")
    assert answer.usage.completion_tokens_details.reasoning_tokens == 2


@pytest.mark.parametrize(("in_pieces", "pieces"), [(True, ["let me ", "think"]), (False, ["let me think"])])
async def test_streamed_reasoning(in_pieces, pieces):
    api = ScriptedHttpApi(REASONED)
    chunks = await api.chat(stream=True, extra_body={"stream_reasoning": in_pieces})
    deltas = [chunk.choices[0].delta for chunk in chunks]
    seen = [delta.reasoning_content for delta in deltas if getattr(delta, "reasoning_content", None)]
    assert seen == pieces
    texts = [(bool(getattr(delta, "reasoning_content", None)), delta.content or "") for delta in deltas]
    assert [text for _, text in texts if text] == ["four"]


async def test_reasoning_may_stay_in_the_text():
    api = ScriptedHttpApi(REASONED)
    await api.chat(extra_body={"separate_reasoning": False})
    assert api.request.answer_format == AnswerFormat()


LIKELY = (TokenLogprob(226, -0.5, ((226, -0.5), (98, -1.5))), TokenLogprob(0, float("-inf")))


async def test_log_probabilities_of_a_chat():
    events = [decision(), Delta("x", (226, 0), logprobs=LIKELY), report()]
    api = ScriptedHttpApi(events)
    whole = await api.chat(logprobs=True, top_logprobs=2)
    assert api.request.sampling.top_logprobs == 2
    first, second = whole.choices[0].logprobs.content
    byte = bytes(first.bytes)
    assert len(byte) == 1 and byte[0] >= 0x80 and first.token == "\ufffd", "a part of a character, with its true byte"
    assert (first.logprob, [top.logprob for top in first.top_logprobs]) == (-0.5, [-0.5, -1.5])
    assert second.logprob == -9999.0
    chunks = await api.chat(logprobs=True, stream=True)
    streamed = [token for chunk in chunks if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content]
    assert [token.bytes for token in streamed] == [first.bytes, second.bytes]
    assert api.request.sampling.top_logprobs == 0


async def test_no_log_probabilities_unless_requested():
    events = [decision(), Delta("x", (7, 8)), report()]
    whole = await ScriptedHttpApi(events).chat()
    assert whole.choices[0].logprobs is None
    assert (await ScriptedHttpApi(events).text()).choices[0].logprobs is None


def ids(text):
    return SimpleNamespace(
        ids=ScriptedHttpApi([]).pipeline.parts.tokenizer.backend.encode(text, add_special_tokens=False).ids
    ).ids


async def test_log_probabilities_of_a_text():
    tokens = tuple(TokenLogprob(each, -1.0, ((each, -1.0), (0, -2.0))) for each in ids("é!"))
    api = ScriptedHttpApi([decision(), Delta("é!", tuple(ids("é!")), logprobs=tokens), report(completion_tokens=3)])
    found = (await api.text(logprobs=2)).choices[0].logprobs
    assert found.tokens == ["bytes:\\xc3", "bytes:\\xa9", "!"] and found.text_offset == [0, 0, 1]
    assert found.token_logprobs == [-1.0] * 3 and found.top_logprobs[2]["!"] == -1.0


PROMPT = tuple(TokenLogprob(each, None if at == 0 else -1.0, ((each, -1.0),)) for at, each in enumerate(ids("abc")))


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(("max_tokens", "text", "counted"), [(2, "abcxy", 2), (0, "abc", 0)])
async def test_an_echo_with_log_probabilities(is_stream, max_tokens, text, counted):
    """What evaluation harnesses ask for: the log-likelihood of a prompt. No token is generated for `max_tokens` 0."""
    answered = tuple(TokenLogprob(each, -3.0) for each in ids("xy"))
    events = [decision(), Delta("xy", tuple(ids("xy")), logprobs=answered), report(prompt_logprobs=PROMPT)]
    api = ScriptedHttpApi(events)
    more = {"stream_options": {"include_usage": True}} if is_stream else {}
    answer = await api.text("abc", echo=True, logprobs=1, max_tokens=max_tokens, stream=is_stream, **more)
    assert api.request.sampling.prompt_logprobs and api.request.sampling.max_new_tokens == max(1, max_tokens)
    (shown, *_), usage = (answer, answer[-1].usage) if is_stream else ([answer], answer.usage)
    choice = shown.choices[0]
    assert choice.text == text and "".join(choice.logprobs.tokens) == text
    assert choice.logprobs.token_logprobs[:3] == [None, -1.0, -1.0] and choice.logprobs.top_logprobs[0] is None
    assert choice.logprobs.text_offset == list(range(len(text)))
    assert (usage.prompt_tokens, usage.completion_tokens) == (3, counted)
    assert choice.finish_reason == ("stop" if max_tokens else "length")


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("prompt", ["abc", ids("abc")])
async def test_an_echo(prompt, is_stream):
    api = ScriptedHttpApi([decision(), Delta("x", (1,)), Delta("y", (2,)), report()])
    answer = await api.text(prompt, echo=True, stream=is_stream)
    texts = [chunk.choices[0].text for chunk in answer] if is_stream else [answer.choices[0].text]
    assert "".join(texts) == "abcxy" and not api.request.sampling.prompt_logprobs


TWO = [
    decision(),
    Delta("a", (1,)),
    Delta("x", (2,), choice=1),
    Delta("b", (3,)),
    report(1, completion_tokens=1),
    report(0, completion_tokens=2),
]


async def test_two_answers():
    api = ScriptedHttpApi(TWO)
    answer = await api.chat(n=2)
    assert api.request.choices == 2
    assert [(choice.index, choice.message.content) for choice in answer.choices] == [(0, "ab"), (1, "x")]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 3)
    assert [each["usage"]["completion_tokens"] for each in answer.presift["answers"]] == [2, 1]
    chunks = await api.chat(n=2, stream=True)
    assert [message.message.content for message in accumulated(chunks).choices] == ["ab", "x"]
    ends = [(c.choices[0].index, c.choices[0].finish_reason) for c in chunks if c.choices[0].finish_reason]
    assert ends == [(1, "stop"), (0, "stop")] and [hasattr(chunk, "presift") for chunk in chunks][-2:] == [False, True]
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant", "assistant", None, None, None]


def spelled(number):
    """Prompt number i has i + 1 tokens and is answered with a letter in two choices."""
    letter = "abcdefghijkl"[number % 12]
    return [
        decision(number % 12 + 1),
        Delta(letter, (number,)),
        Delta(letter.upper(), (number,), choice=1),
        report(0, 1, prompt_tokens=number % 12 + 1),
        report(1, 1, prompt_tokens=number % 12 + 1),
    ]


PROMPTS = {"texts": ["p"] * 12, "lists of ids": [[1, 2]] * 12}


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
async def test_several_prompts(prompts):
    api = ScriptedHttpApi(spelled)
    answer = await api.text(prompts, n=2)
    assert "".join(choice.text for choice in answer.choices) == "aAbBcCdDeEfFgGhHiIjJkKlL"
    assert [choice.index for choice in answer.choices] == list(range(24))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (sum(range(1, 13)), 24)
    assert 1 < api.pipeline.most_at_once <= 8 and len(answer.presift["answers"]) == 24
    chunks = await api.text(prompts, n=2, stream=True, stream_options={"include_usage": True})
    texts = {}
    for chunk in chunks[:-1]:
        choice = chunk.choices[0]
        texts[choice.index] = texts.get(choice.index, "") + choice.text
    assert "".join(texts[index] for index in range(24)) == "aAbBcCdDeEfFgGhHiIjJkKlL"
    assert chunks[-1].usage.total_tokens == answer.usage.total_tokens


async def test_one_failing_prompt_fails_the_call():
    api = ScriptedHttpApi(lambda number: [decision(), TargetUnavailable("gone")] if number == 3 else spelled(number))
    with pytest.raises(openai.InternalServerError):
        await api.text(["p"] * 12)
    assert api.pipeline.running == 0 and len(api.pipeline.requests) < 12


async def test_usage_in_every_chunk():
    api = ScriptedHttpApi([decision(), Delta("a", (1,)), Delta("b", (2,)), report(completion_tokens=3)])
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = await api.text(stream=True, stream_options=options)
    assert [chunk.usage.completion_tokens for chunk in chunks] == [1, 2, 3, 3]
    assert {chunk.usage.prompt_tokens for chunk in chunks} == {3}


async def test_token_ids_of_prompt_and_answer():
    api = ScriptedHttpApi([decision(), Delta("xy", (5, 6)), report()])
    extra = {"return_token_ids": True}
    whole = await api.text("abc", extra_body=extra)
    assert (whole.choices[0].token_ids, whole.choices[0].prompt_token_ids) == ([5, 6], ids("abc"))
    first, last = await api.text("abc", stream=True, extra_body=extra)
    assert (first.choices[0].token_ids, first.choices[0].prompt_token_ids) == ([5, 6], ids("abc"))
    assert not hasattr(last.choices[0], "prompt_token_ids")


async def test_ignored_parameters_are_named():
    api = ScriptedHttpApi([decision(), Delta("x", (1,)), report()])
    messages = [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}], "weight": 1}]
    extra = {"temprature": 1, "priority": 3, "spaces_between_special_tokens": True, "user": "me", "other": None}
    answer = await api.chat(messages=messages, extra_body=extra)
    assert answer.presift["ignored"] == ["priority", "temprature", "messages.weight", "messages.content.cache_control"]
    chunks = await api.chat(messages=messages, extra_body=extra, stream=True)
    assert chunks[-1].presift["ignored"] == answer.presift["ignored"]
    answer = await api.chat(extra_body={f"key {number}" * 20: 1 for number in range(1000)})
    assert len(answer.presift["ignored"]) == 32 and {len(name) for name in answer.presift["ignored"]} == {64}


GRAMMARS = {
    "an object": ({"response_format": {"type": "json_object"}}, "json_schema", '{"type": "object"}'),
    "a schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "null"}}}},
        "json_schema",
        '{"type": "null"}',
    ),
    "SGLang's older schema": (
        {"response_format": {"type": "json_schema", "schema": {"type": "null"}}},
        "json_schema",
        '{"type": "null"}',
    ),
    "a tag": (
        {"response_format": {"type": "structural_tag", "structures": [], "triggers": []}},
        "structural_tag",
        '{"type": "structural_tag", "structures": [], "triggers": []}',
    ),
    "SGLang's regex": ({"regex": "a+"}, "regex", "a+"),
    "SGLang's EBNF": ({"ebnf": 'root ::= "a"'}, "ebnf", 'root ::= "a"'),
    "vLLM's schema": ({"guided_json": {"type": "null"}}, "json_schema", '{"type": "null"}'),
    "vLLM's schema as text": ({"guided_json": "{}"}, "json_schema", "{}"),
    "vLLM's regex": ({"guided_regex": "a+"}, "regex", "a+"),
    "vLLM's choice": ({"guided_choice": ["a b", '"']}, "ebnf", 'root ::= "a b" | "\\""'),
    "vLLM's grammar": ({"guided_grammar": "g"}, "ebnf", "g"),
    "vLLM's newer form": ({"structured_outputs": {"json": {"type": "null"}}}, "json_schema", '{"type": "null"}'),
    "vLLM's newer choice": ({"structured_outputs": {"choice": ["a"]}}, "ebnf", 'root ::= "a"'),
    "presift's": ({"presift": {"sampling": {"json_schema": {"type": "null"}}}}, "json_schema", '{"type": "null"}'),
    "presift's regex": ({"presift": {"sampling": {"regex": "a"}}}, "regex", "a"),
}


@pytest.mark.parametrize(("asked", "kind", "text"), GRAMMARS.values(), ids=GRAMMARS)
async def test_grammars(asked, kind, text):
    api = ScriptedHttpApi([decision(), Delta("x", (1,)), report()])
    for ask in (api.chat, api.text):
        await ask(extra_body=asked)
        assert api.request.sampling.grammar == Grammar(GrammarKind(kind), text)


async def test_extensions_at_the_top_mean_what_they_mean_to_sglang_and_vllm():
    api = ScriptedHttpApi([decision(), Delta("x", (1,)), report()])
    extra = {"top_k": 7, "min_p": 0.5, "repetition_penalty": 1.5, "min_tokens": 2, "stop_token_ids": [9],
             "ignore_eos": True, "skip_special_tokens": False}  # fmt: skip
    standard = {"presence_penalty": 1, "frequency_penalty": -1, "logit_bias": {"5": 3}, "seed": -1, "max_tokens": 9}
    for ask in (api.chat, api.text):
        await ask(**standard, extra_body=extra)
        sampling = api.request.sampling
        assert (sampling.top_k, sampling.min_p, sampling.repetition_penalty) == (7, 0.5, 1.5)
        assert (sampling.min_new_tokens, sampling.stop_token_ids, sampling.ignore_eos) == (2, (9,), True)
        assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.logit_bias) == (1, -1, {5: 3})
        assert sampling.keep_special_tokens and sampling.seed is None
        await ask(extra_body={"top_k": -1, "repetition_penalty": 1.0, "stop_token_ids": None, "priority": 0})
        assert api.request.sampling.top_k is None and not api.request.sampling.keep_special_tokens


@pytest.mark.parametrize(("options", "migrates"), [({}, False), ({"migrate": True}, True), ({"migrate": False}, False)])
async def test_migrate_reaches_the_request(options, migrates):
    api = ScriptedHttpApi([decision(), Delta("x", (1,)), report()])
    for ask in (api.chat, api.text):
        await ask(extra_body={"presift": options})
        assert api.request.migrate is migrates


THINKING = {
    "on": ({"enable_thinking": True}, {"enable_thinking"}, {"enable_thinking": True}),
    "off": ({"enable_thinking": False}, {"thinking"}, {"thinking": False}),
    "off without a switch": ({"enable_thinking": False}, set(), {}),
    "effort": ({"reasoning_effort": "low"}, {"reasoning_effort"}, {"reasoning_effort": "low"}),
    "effort as a switch": ({"reasoning_effort": "low"}, {"enable_thinking"}, {"enable_thinking": True}),
    "no effort": ({"reasoning_effort": "none"}, {"enable_thinking"}, {"enable_thinking": False}),
    "OpenRouter's": ({"reasoning": {"effort": "none"}}, {"enable_thinking"}, {"enable_thinking": False}),
    "the template's own": (
        {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True, "x": 1}},
        {"enable_thinking"},
        {"enable_thinking": True, "x": 1},
    ),
}


@pytest.mark.parametrize(("asked", "template", "variables"), THINKING.values(), ids=THINKING)
async def test_reasoning_is_switched_by_the_templates_variables(asked, template, variables):
    api = ScriptedHttpApi([decision(), Delta("x", (1,)), report()], template_variables=frozenset(template))
    answer = await api.chat(extra_body=asked)
    given = api.request.prompt.template_kwargs_json
    assert (json.loads(given) if given else {}) == variables
    is_noted = asked.get("reasoning_effort") == "low" and "reasoning_effort" not in template
    assert answer.presift.get("ignored", []) == (["reasoning_effort"] if is_noted else [])


async def test_nothing_asked_of_a_variable_that_the_template_lacks_is_named():
    api = ScriptedHttpApi([decision(), Delta("x", (1,)), report()], template_variables=frozenset({"thinking"}))
    asked = {"thinking": False, "enable_thinking": False, "style": None, "custom": 0}
    answer = await api.chat(extra_body={"chat_template_kwargs": asked})
    assert json.loads(api.request.prompt.template_kwargs_json) == {"thinking": False, "custom": 0}
    assert answer.presift["ignored"] == ["chat_template_kwargs.enable_thinking", "chat_template_kwargs.style"]
    answer = await api.chat(extra_body={"chat_template_kwargs": dict.fromkeys(map(str, range(100)), False)})
    assert len(answer.presift["ignored"]) == MAX_IGNORED


@pytest.mark.parametrize("asked", [{"enable_thinking": True}, {"reasoning_effort": "high"}])
async def test_reasoning_that_the_template_cannot_switch_is_refused(asked):
    with pytest.raises(openai.BadRequestError) as refused:
        await ScriptedHttpApi([decision(), report()]).chat(extra_body=asked)
    assert refused.value.param in asked


async def test_history_may_have_all_that_answers_have():
    api = ScriptedHttpApi([decision(), Delta("x", (1,)), report()])
    called = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    answer = await api.chat(
        messages=[
            {"role": "Developer", "content": [{"type": "input_text", "text": "Be brief."}]},
            {"role": "user", "content": ["a", {"type": "text", "text": "b"}], "name": "me", "tool_calls": None},
            {"role": "assistant", "content": None, "tool_calls": [called], "reasoning_content": "hm", "refusal": None},
            {"role": "tool", "content": [{"type": "text", "text": "1"}], "tool_call_id": "1", "name": "add"},
            {"role": "assistant",
             "content": [{"type": "thinking", "thinking": "so"}, {"type": "refusal", "refusal": "no"}],
             "annotations": [{"type": "url_citation"}], "audio": None, "function_call": None},
            {"role": "assistant", "content": None, "refusal": "I will not"},
            {"role": "user", "content": None},
            {"role": "tool", "tool_call_id": "2"},
            {"role": "system", "content": []},
            {"role": "assistant", "tool_calls": []},
            {"role": "user", "content": "?"},
        ]
    )  # fmt: skip
    messages = api.request.prompt.messages
    assert [message.role for message in messages][:4] == ["system", "user", "assistant", "tool"]
    assert [message.text for message in messages] == [
        "Be brief.",
        "ab",
        "",
        "1",
        "no",
        "I will not",
        "",
        "",
        "",
        "",
        "?",
    ]
    assert [message.reasoning for message in messages][:6] == ["", "", "hm", "", "so", ""]
    assert answer.presift["ignored"] == ["messages.name"]
    assert (messages[1].name, messages[3].name, messages[3].tool_call_id) == ("", "add", "1")


async def test_an_answer_may_continue_a_message():
    api = ScriptedHttpApi([decision(), Delta("x", (1,)), report()])
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    await api.chat(messages=messages, extra_body={"continue_final_message": True, "add_generation_prompt": False})
    assert api.request.prompt.continue_final_message


async def test_without_a_model_the_target_answers():
    api = ScriptedHttpApi([decision(), Delta("x", (1,)), report()])
    answer = await api.http.post("/v1/completions", json={"prompt": "a", "best_of": 1, "suffix": ""})
    assert answer.json()["model"] == "target"


async def test_stream_options_of_a_whole_answer_ask_for_nothing():
    api = ScriptedHttpApi([decision(), Delta("x", (1,)), report()])
    answer = await api.text(stream_options={"include_usage": True})
    assert answer.usage.completion_tokens == 2 and "ignored" not in answer.presift
    answer = await api.text(stream_options={"include_obfuscation": True})
    assert answer.presift["ignored"] == ["stream_options.include_obfuscation"]
