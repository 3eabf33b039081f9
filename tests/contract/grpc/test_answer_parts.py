"""Tool calls, reasoning, grammars and log probabilities: what the target is asked for, and what the caller gets."""

import pytest

from presift.v1 import orchestrator_pb2, plan_pb2, target_pb2

from ..fakes.stack import ALL_ROUTES, request

LONG = list(range(100, 200))
ABLE = {"tool_call_parser": "qwen25", "reasoning_parser": "qwen3", "grammars": True}
TOOL = '{"type": "function", "function": {"name": "add", "parameters": {}}}'
REQUIRED, FUNCTION = target_pb2.TOOL_CHOICE_REQUIRED, target_pb2.TOOL_CHOICE_FUNCTION


def chat(*tools):
    message = orchestrator_pb2.Message(role="user", parts=[orchestrator_pb2.TextPart(text="hi")])
    return orchestrator_pb2.Prompt(chat=orchestrator_pb2.Chat(messages=[message], tools_json=tools))


async def asked(stack, prompt, **options):
    """What the target was asked."""
    await stack.ask(prompt, **options)
    return stack.target.calls[-1]


# -- what the target is asked --


async def test_a_chat_is_separated_by_the_targets_parsers(open_stack):
    wanted = (await asked(await open_stack(abilities=ABLE), chat(TOOL))).format
    assert wanted == target_pb2.AnswerFormat(
        tools_json=[TOOL], tool_choice=target_pb2.TOOL_CHOICE_AUTO, separate_reasoning=True
    )


@pytest.mark.parametrize("missing", ABLE)
async def test_only_what_the_target_can_separate(open_stack, missing):
    stack = await open_stack(abilities=ABLE | {missing: type(ABLE[missing])()})
    wanted = (await asked(stack, chat(TOOL))).format
    assert list(wanted.tools_json) == ([] if missing == "tool_call_parser" else [TOOL])
    assert wanted.separate_reasoning is (missing != "reasoning_parser")


@pytest.mark.parametrize("options", [{"prompt": [1, 2]}, {"prompt": "text"}])
async def test_nothing_is_separated(open_stack, options):
    stack = await open_stack(abilities=ABLE)
    assert not (await asked(stack, **options)).HasField("format")


@pytest.mark.parametrize("raw_text", [True, False])
async def test_a_reasoning_model_is_told_of_a_chat_and_its_variables(open_stack, raw_text):
    """A grammar begins after the reasoning, also where that stays in the text."""
    prompt = chat()
    prompt.chat.template_kwargs_json = '{"enable_thinking": false}'
    wanted = await asked(await open_stack(abilities=ABLE), prompt, raw_text=raw_text)
    assert wanted.format == target_pb2.AnswerFormat(
        tool_choice=target_pb2.TOOL_CHOICE_AUTO,
        separate_reasoning=not raw_text,
        template_kwargs_json='{"enable_thinking": false}',
    )
    unable = await open_stack(abilities=ABLE | {"reasoning_parser": ""})
    assert not (await asked(unable, prompt, raw_text=raw_text)).HasField("format")


@pytest.mark.parametrize("forced", [{"tool_choice": REQUIRED}, {"tool_choice": FUNCTION, "tool_function": "add"}])
@pytest.mark.parametrize("parser", ["qwen25", ""])
async def test_a_forced_call(open_stack, forced, parser):
    """It needs no parser: its grammar makes JSON."""
    stack = await open_stack(abilities=ABLE | {"tool_call_parser": parser})
    wanted = (await asked(stack, chat(TOOL), single_tool_call=True, **forced)).format
    assert (wanted.tool_choice, wanted.function) == (forced["tool_choice"], forced.get("tool_function", ""))
    assert wanted.single_call


async def test_every_field_of_sampling_arrives(open_stack):
    sent = target_pb2.Sampling(
        max_new_tokens=3, temperature=0.5, top_p=0.25, top_k=4, seed=2**64 - 1, stop=["x"], stop_token_ids=[9],
        ignore_eos=True, min_p=0.125, presence_penalty=-2, frequency_penalty=2, repetition_penalty=0.5,
        logit_bias={0: -100.0, 999: 100.0}, min_new_tokens=2, json_schema="{}", top_logprobs=20,
        prompt_logprobs=True, keep_special_tokens=True,
    )  # fmt: skip
    assert {field.name for field, _ in sent.ListFields()} == {
        field.name for field in sent.DESCRIPTOR.fields if field.name not in ("regex", "ebnf", "structural_tag")
    }
    stack = await open_stack(abilities=ABLE)
    [event async for event in stack.stub.Generate(request_with(sent))]
    assert stack.target.calls[0].sampling == sent


def request_with(sampling):
    sent = request([5, 6, 7])
    sent.sampling.CopyFrom(sampling)
    return sent


# -- what is refused before any work --

FORCED = {"tool_choice": REQUIRED}
REFUSED = {
    "a forced call without grammars": ({"grammars": False}, FORCED, "tool_choice", "no grammars"),
    "a grammar without grammars": ({"grammars": False}, {"sampling": {"regex": "a"}}, "sampling.regex", "no grammars"),
    "a grammar and a forced call": ({}, FORCED | {"sampling": {"ebnf": "a"}}, "sampling.ebnf", "tool_choice required"),
    "raw text and a forced call": ({}, FORCED | {"raw_text": True}, "raw_text", "tool_choice required"),
    "a function without its choice": ({}, {"tool_function": "add"}, "tool_function", "function"),
    "a choice without its function": ({}, {"tool_choice": FUNCTION}, "tool_function", "function"),
    "an unknown choice": ({}, {"tool_choice": 9}, "tool_choice", "TOOL_CHOICE_REQUIRED"),
    "a bias outside the vocabulary": ({}, {"sampling": {"logit_bias": {1000: 1}}}, "sampling.logit_bias", "< 1000"),
    "a bias over its range": ({}, {"sampling": {"logit_bias": {1: 101}}}, "sampling.logit_bias", "-100..100"),
    "not a number": ({}, {"sampling": {"min_p": float("nan")}}, "sampling.min_p", "0..1"),
    "a penalty of zero": ({}, {"sampling": {"repetition_penalty": 0}}, "sampling.repetition_penalty", "> 0 and <= 2"),
    "a temperature": ({}, {"sampling": {"temperature": 2.5}}, "sampling.temperature", "0..2"),
    "a length": ({}, {"sampling": {"min_new_tokens": 6}}, "sampling.min_new_tokens", "<= 5 tokens"),
    "a function that is no tool": (
        {},
        {"tool_choice": FUNCTION, "tool_function": "sub"},
        "tool_function",
        "one of the tools",
    ),
    "an empty grammar": ({}, {"sampling": {"regex": " "}}, "sampling.regex", "a grammar"),
    "a schema that is not JSON": ({}, {"sampling": {"json_schema": "{"}}, "sampling.json_schema", "a JSON object"),
    "a tag that is no object": ({}, {"sampling": {"structural_tag": "[]"}}, "sampling.structural_tag", "a JSON object"),
    "logprobs of the prompt alone": ({}, {"sampling": {"prompt_logprobs": True}}, "sampling.prompt_logprobs", "unset"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_refusals_name_the_field_before_any_work(open_stack, case):
    changed, options, field, limit = REFUSED[case]
    stack = await open_stack(abilities=ABLE | changed)
    refused = await stack.refused(
        chat(TOOL), route=plan_pb2.ROUTE_SPEC_PC, budget={"compress_above_tokens": 0}, **options
    )
    assert (refused.code, refused.reason, refused.field) == ("INVALID_ARGUMENT", "INVALID_REQUEST", field)
    assert limit in refused.limit and refused.value
    assert stack.draft.calls == stack.target.calls == []


async def test_a_forced_call_without_tools_is_refused(open_stack):
    stack = await open_stack(abilities=ABLE)
    for prompt in (chat(), "text", [1, 2]):
        assert (await stack.refused(prompt, **FORCED)).field == "tool_choice"


# -- log probabilities of the prompt --

PROMPT_LOGPROBS = {"top_logprobs": 1, "prompt_logprobs": True}


@pytest.mark.parametrize("budget", [{}, {"max_prompt_tokens": 16}, {"max_ttft_ms": 1}])
async def test_auto_takes_full_for_what_other_routes_cannot_do(open_stack, budget):
    stack = await open_stack(routes=ALL_ROUTES)
    assert (await stack.ask(LONG, budget=budget)).route != "FULL"
    answer = await stack.ask(LONG, sampling=PROMPT_LOGPROBS, budget=budget)
    assert answer.route == "FULL" and stack.target.calls[-1].sampling.prompt_logprobs
    assert "spec_pc does not support sampling.prompt_logprobs" in answer.decision.detail
    assert len(stack.draft.calls) == 1


async def test_auto_does_not_continue_a_selection(open_stack):
    stack = await open_stack(routes=ALL_ROUTES)
    await stack.ask(LONG, route=plan_pb2.ROUTE_SPEC_KV)
    kv = {"continue_prompt_tokens": 100}
    assert (await stack.ask([*LONG, 1], kv=kv)).decision.continued
    answer = await stack.ask([*LONG, 1], kv=kv, sampling=PROMPT_LOGPROBS)
    assert answer.route == "FULL" and not answer.decision.continued
    assert "spec_kv does not support sampling.prompt_logprobs" in answer.decision.detail


@pytest.mark.parametrize("route", [plan_pb2.ROUTE_SPEC_PC, plan_pb2.ROUTE_SPEC_KV, plan_pb2.ROUTE_SPEC_KV_PC])
@pytest.mark.parametrize("prompt", [LONG, [1, 2]], ids=["long", "short"])
async def test_a_named_route_that_cannot_do_it_is_refused(open_stack, route, prompt):
    stack = await open_stack(routes=ALL_ROUTES)
    refused = await stack.refused(prompt, route=route, sampling=PROMPT_LOGPROBS)
    assert (refused.code, refused.field) == ("INVALID_ARGUMENT", "sampling.prompt_logprobs")
    assert "full or auto" in refused.limit
    assert stack.draft.calls == stack.target.calls == []


# -- what the caller gets --


async def test_parts_of_the_answer(open_stack):
    call = target_pb2.ToolCallDelta(index=1, id="c1", name="add", arguments='{"a"')
    logprob = target_pb2.TokenLogprob(token_id=5, logprob=-0.5, top=[target_pb2.TopLogprob(token_id=6, logprob=-1.5)])
    first = target_pb2.TokenLogprob(token_id=8)

    def delta(request, token_id):
        parsed = target_pb2.ParsedText(content="c", reasoning="r", tool_calls=[call])
        return target_pb2.TokenDelta(token_ids=[token_id], logprobs=[logprob], parsed=parsed)

    def spoil(usage):
        usage.finish_reason, usage.reasoning_tokens = target_pb2.FINISH_REASON_TOOL_CALLS, 4
        usage.prompt_logprobs.append(first)

    stack = await open_stack(abilities=ABLE)
    stack.target.delta, stack.target.spoil, stack.target.answer = delta, spoil, lambda request: [5]
    _, answer, end = [event async for event in stack.stub.Generate(request(chat(TOOL)))]
    assert answer.delta == orchestrator_pb2.TextDelta(
        text="c", token_ids=[5], reasoning="r", tool_calls=[call], logprobs=[logprob]
    )
    assert (end.usage.finish_reason, end.usage.reasoning_tokens) == (target_pb2.FINISH_REASON_TOOL_CALLS, 4)
    assert list(end.usage.prompt_logprobs) == [first] and not end.usage.prompt_logprobs[0].HasField("logprob")


async def test_info_names_parsers_grammars_and_engine(open_stack):
    told = ABLE | {"engine": "sglang 9.9 (untested)"}
    stack = await open_stack(abilities=told)
    info = await stack.stub.GetInfo(orchestrator_pb2.GetInfoRequest())
    assert {name: getattr(info, name) for name in told} == told


# -- warnings --


async def test_an_answer_that_stopped_at_the_default_length_says_so(stack):
    stack.target.answer = lambda request: [1] * 1000
    answer = await stack.ask([1, 2], max_new_tokens=None)
    assert list(answer.usage.warnings) == [
        "the answer stopped at 256 tokens: 256 is the default, as the request set none"
    ]
    assert not (await stack.ask([1, 2], max_new_tokens=256)).usage.warnings


async def test_no_warning_for_an_answer_that_ended(stack):
    def ended(usage):
        usage.finish_reason = target_pb2.FINISH_REASON_STOP

    stack.target.spoil = ended
    assert not (await stack.ask([1, 2], max_new_tokens=None)).usage.warnings
