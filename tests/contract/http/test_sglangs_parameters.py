"""Every parameter of SGLang's own server is carried out, accepted if neutral, or refused by name.

A new version of SGLang with a new parameter fails here until somebody has decided. Its source is read, not imported:
that needs torch.
"""

import ast
import importlib.util
from pathlib import Path

import openai
import pytest

from presift.orchestrator.api.http.messages.schema import MessagesBody
from presift.orchestrator.api.http.responses.schema import ResponsesBody
from presift.orchestrator.api.http.schema import ChatBody, CompletionBody
from presift.orchestrator.api.http.unsupported import NEUTRAL, NOTED, WITHOUT_EFFECT, neutral_values
from presift.orchestrator.pipeline.events import Delta

from ..fakes.scripted_pipeline import ScriptedHttpApi, decision, report

CARRIED_OUT_BY_BOTH = {
    *(
        "ebnf",
        "frequency_penalty",
        "ignore_eos",
        "logit_bias",
        "logprobs",
        "max_tokens",
        "min_p",
        "min_tokens",
        "model",
    ),
    *("n", "presence_penalty", "regex", "repetition_penalty", "response_format", "return_token_ids", "seed"),
    *("skip_special_tokens", "stop", "stop_token_ids", "stream", "stream_options", "temperature", "top_k", "top_p"),
}
CARRIED_OUT = {
    "ChatCompletionRequest": CARRIED_OUT_BY_BOTH | {
        *("chat_template_kwargs", "continue_final_message", "max_completion_tokens", "messages"),
        *("parallel_tool_calls", "reasoning_effort", "return_prompt_token_ids", "separate_reasoning"),
        *("stream_reasoning", "tool_choice", "tools", "top_logprobs"),
    },
    "CompletionRequest": CARRIED_OUT_BY_BOTH | {"best_of", "echo", "json_schema", "prompt", "suffix"},
}  # fmt: skip
# Asks for nothing that changes an answer: accepted, and named in the answer if it asks for something.
WITHOUT_AN_EFFECT = {
    "ChatCompletionRequest": {"priority", "rid", "user"},
    "CompletionRequest": {"custom_labels", "priority", "rid", "user"},
}
# Accepted as SGLang's own clients send them by default, refused by name otherwise.
NEUTRAL_ONLY = {
    "ChatCompletionRequest": {"use_audio_in_video"},
    "CompletionRequest": set(),
}
NEUTRAL_ONLY_AT_BOTH = {
    *("cache_salt", "custom_logit_processor", "custom_params", "extra_key", "images_config", "lora_path"),
    *("no_stop_trim", "return_cached_tokens_details", "return_hidden_states", "return_routed_experts"),
    *("return_spec_tokens_details", "routed_experts_start_len", "session_params", "stop_regex"),
}
REFUSED = {
    *("bootstrap_host", "bootstrap_port", "bootstrap_room", "data_parallel_rank", "disagg_prefill_dp_rank"),
    *("routed_dp_rank", "session_id"),
}
OF_A_CHAT = {
    *("input_ids", "max_dynamic_patch", "min_dynamic_patch", "return_input_ids_in_sglext", "return_meta_info"),
    *("return_output_ids_in_sglext", "return_sampling_mask", "sampling_logprobs_mode", "task", "video_config"),
}
BODIES = {"ChatCompletionRequest": ChatBody, "CompletionRequest": CompletionBody}


def fields(name):
    """The annotated fields of a class of SGLang's protocol."""
    spec = importlib.util.find_spec("sglang")
    if spec is None:
        pytest.skip("SGLang is not installed")
    source = Path(spec.submodule_search_locations[0], "srt/entrypoints/openai/protocol.py").read_text()
    node = next(each for each in ast.parse(source).body if isinstance(each, ast.ClassDef) and each.name == name)
    return {each.target.id for each in node.body if isinstance(each, ast.AnnAssign)}


@pytest.mark.parametrize("name", BODIES)
def test_every_parameter_is_decided(name):
    neutral = NEUTRAL_ONLY_AT_BOTH | NEUTRAL_ONLY[name] | REFUSED
    if name == "ChatCompletionRequest":
        neutral |= OF_A_CHAT
    decided = CARRIED_OUT[name] | WITHOUT_AN_EFFECT[name] | neutral
    assert fields(name) == decided
    assert CARRIED_OUT[name] <= set(BODIES[name].model_fields)
    assert WITHOUT_EFFECT | set(NOTED) >= WITHOUT_AN_EFFECT[name]
    assert neutral <= set(NEUTRAL) and {each for each in REFUSED if NEUTRAL[each]} == set()


@pytest.mark.parametrize("name", sorted(NEUTRAL))
async def test_parameters_that_are_not_carried_out_are_refused_by_name(name):
    api = ScriptedHttpApi([decision(), Delta("x", (1,)), report()])
    for ask, body in ((api.chat, ChatBody), (api.text, CompletionBody)):
        if name in body.model_fields:
            continue
        for value in neutral_values(name, NEUTRAL[name]):
            await ask(extra_body={name: value})
        count = len(api.pipeline.requests)
        with pytest.raises(openai.BadRequestError) as refused:
            await ask(extra_body={name: {"asks": "something"}})
        assert refused.value.param == name and len(api.pipeline.requests) == count


EMPTY_AT_BOTH = {
    **dict.fromkeys(("stop", "json_schema", "regex", "ebnf", "guided_json", "guided_regex", "guided_grammar"), ""),
    "guided_choice": [],
    "response_format": {},
    "structured_outputs": {"choice": [], "json": "", "structural_tag": ""},
    "stop_token_ids": [],
    "logit_bias": {},
    "stream_options": {},
}


@pytest.mark.parametrize("name", sorted(EMPTY_AT_BOTH))
async def test_what_is_empty_asks_for_nothing(name):
    """Frameworks send the empty values of their own settings."""
    api = ScriptedHttpApi([decision(), Delta("x", (1,)), report()])
    for ask in (api.chat, api.text):
        await ask(extra_body={name: EMPTY_AT_BOTH[name]})
    assert all(request.sampling.grammar is None and not request.sampling.stop for request in api.pipeline.requests)
    assert len(api.pipeline.requests) == 2


async def test_an_empty_effort_asks_for_nothing_and_an_empty_search_for_one():
    api = ScriptedHttpApi([decision(), Delta("x", (1,)), report()])
    await api.chat(extra_body={"reasoning_effort": "", "verbosity": "medium", "audio": {}, "input_ids": []})
    with pytest.raises(openai.BadRequestError, match="web_search_options"):
        await api.chat(extra_body={"web_search_options": {}})


@pytest.mark.parametrize("length", [2**31, 2**32, 2**63 - 1, 10**300, 1e300, "99999999999", 7.0])
async def test_an_answers_length_is_an_upper_bound(length):
    """The largest number of a client's language means no limit; at every endpoint."""
    api = ScriptedHttpApi([decision(), Delta("x", (1,)), report()])
    most = min(int(length), 2**32 - 1)
    for ask, names in ((api.chat, ("max_tokens", "max_completion_tokens")), (api.text, ("max_tokens",))):
        for name in names:
            await ask(extra_body={name: length})
            assert api.pipeline.requests[-1].sampling.max_new_tokens == most
    for kind, name in ((ResponsesBody, "max_output_tokens"), (MessagesBody, "max_tokens")):
        rest = {"input": "a"} if kind is ResponsesBody else {"messages": [{"role": "user", "content": "a"}]}
        assert getattr(kind.model_validate({"model": "m", **rest, name: length}), name) == most
