"""Requests of all shapes that SGLang's own server takes, for `test_same_as_sglang.py`: name -> (path, body)."""

from __future__ import annotations

from typing import Any

Body = dict[str, Any]

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
# `chat_template` of the model under test: ChatML with tools, as Hermes models have them. Reasoning is off by default.
TEMPLATE = """{% if not enable_thinking is defined %}{% set enable_thinking = false %}{% endif %}
{%- if tools %}<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}

{% endif %}# Tools
<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools>
Call a function with <tool_call>{"name": ..., "arguments": ...}</tool_call>.<|im_end|>
{% endif %}{%- for message in messages %}{%- if message.role == 'tool' %}<|im_start|>user
<tool_response>{{ message.content }}</tool_response><|im_end|>
{% elif message.role != 'system' or not tools %}<|im_start|>{{ message.role }}
{{ message.content or '' }}{% for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endif %}{%- endfor %}{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def _tool(name: str, description: str, properties: Body, *required: str) -> Body:
    """A strict tool in the form that SGLang's server gives every tool, with keys that the caller left out.

    presift renders a tool as it was sent, as transformers does; sent in this form, both servers render the same.
    """
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    function = {"description": description, "name": name, "parameters": parameters, "strict": True}
    return {"type": "function", "function": function, "defer_loading": None}


WEATHER = _tool(
    "get_weather",
    "The weather in a city.",
    {"city": {"type": "string", "maxLength": 12}, "days": {"type": "integer", "maximum": 9}},
    "city",
)
CLOCK = _tool("get_time", "The time in a zone.", {"zone": {"enum": ["UTC", "CET"]}}, "zone")
PERSON: Body = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 10}, "age": {"type": "integer", "maximum": 120}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
_HISTORY: list[Body] = [
    {"role": "user", "content": "What is the weather in Oslo?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Oslo", "days": 1}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "Rain, 7 degrees."},
]


def _chat(*turns: str, **more: Any) -> tuple[str, Body]:
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": turn} for number, turn in enumerate(turns)]
    return CHAT, {"messages": messages, "max_tokens": 12, "temperature": 0} | more


def _text(prompt: Any, **more: Any) -> tuple[str, Body]:
    return TEXT, {"prompt": prompt, "max_tokens": 10, "temperature": 0} | more


def _schema(schema: Body, **more: Any) -> Body:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, **more}}


def _thinking(*, enabled: bool = True, **more: Any) -> tuple[str, Body]:
    """A model that knows no reasoning repeats that of earlier turns."""
    turns = [turn for number in (2, 4, 6) for turn in (f"Is {number} even?", "<think>\nEasy.\n</think>\n\nYes.")]
    return _chat(
        *turns, "Is 8 even?", **{"max_tokens": 40, "chat_template_kwargs": {"enable_thinking": enabled}} | more
    )


_ASK = "Name the capital of Norway."
_TOOLS = {"tools": [WEATHER, CLOCK], "max_tokens": 60}
_NAMED = {"type": "function", "function": {"name": "get_time"}}
_BASE: dict[str, tuple[str, Body]] = {
    "chat": _chat(_ASK),
    "chat, three turns": _chat(_ASK, "Oslo.", "And of Denmark?"),
    "chat, system": (
        CHAT,
        _chat(_ASK)[1] | {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": _ASK}]},
    ),
    "chat, parts": (CHAT, _chat("")[1] | {"messages": [{"role": "user", "content": [{"type": "text", "text": _ASK}]}]}),
    "chat, user's name": (CHAT, _chat("")[1] | {"messages": [{"role": "user", "name": "Ann", "content": _ASK}]}),
    "chat, to the end": _chat("Say hi.", max_tokens=60),
    "chat, max_completion_tokens": _chat(_ASK, max_tokens=None, max_completion_tokens=5),
    "chat, one token": _chat(_ASK, max_tokens=1),
    "chat, stop string": _chat("Count from one to nine in digits: 1, 2,", stop=[" 5", "7"], max_tokens=40),
    "chat, stop as a string": _chat(_ASK, stop="."),
    "chat, stop token": _chat(_ASK, stop_token_ids=[30], max_tokens=20),
    "chat, past the end": _chat("Say hi.", ignore_eos=True, max_tokens=30),
    "chat, at least": _chat("Say hi.", min_tokens=20, max_tokens=24),
    "chat, top_p": _chat(_ASK, top_p=0.5),
    "chat, top_k 1": _chat(_ASK, temperature=1, top_k=1),
    "chat, min_p": _chat(_ASK, min_p=0.1),
    "chat, frequency penalty": _chat("Repeat: a a a a a", frequency_penalty=1.5),
    "chat, presence penalty": _chat("Repeat: a a a a a", presence_penalty=1.5),
    "chat, repetition penalty": _chat("Repeat: a a a a a", repetition_penalty=1.3),
    "chat, neutral penalties": _chat(_ASK, frequency_penalty=0, presence_penalty=0, repetition_penalty=1.0),
    "chat, bias": _chat(_ASK, logit_bias={"504": 50.0}),
    "chat, two choices": _chat(_ASK, n=2),
    "chat, log probabilities": _chat(_ASK, logprobs=True),
    "chat, top log probabilities": _chat(_ASK, logprobs=True, top_logprobs=3),
    "chat, seed": _chat(_ASK, seed=7),
    "chat, special tokens": _chat("Say hi.", skip_special_tokens=False, max_tokens=30),
    "chat, characters beyond ASCII": _chat("Répète : 你好 🙂 naïve", max_tokens=24),
    "chat, JSON object": _chat("A JSON object with a name.", response_format={"type": "json_object"}, max_tokens=24),
    "chat, schema": _chat("Describe Ann, 30.", response_format=_schema(PERSON), max_tokens=40),
    "chat, strict schema": _chat("Describe Ann, 30.", response_format=_schema(PERSON, strict=True), max_tokens=40),
    "chat, text format": _chat(_ASK, response_format={"type": "text"}),
    "chat, regex": _chat("A date?", regex=r"20\d\d-(0|1)\d-[0-3]\d", max_tokens=24),
    "chat, EBNF": _chat("Yes or no?", ebnf='root ::= "yes" | "no"', max_tokens=24),
    "chat, enumeration": _chat("Pick.", response_format=_schema({"enum": ["red", "green"]}), max_tokens=24),
    "chat, tools left alone": _chat("Say hi.", **_TOOLS),
    "chat, tools none": _chat("Say hi.", **_TOOLS, tool_choice="none"),
    "chat, tool required": _chat("The weather in Oslo?", **_TOOLS, tool_choice="required"),
    "chat, tool named": _chat("What time is it?", **_TOOLS, tool_choice=_NAMED),
    # Not parallel_tool_calls false: presift ends after one call, SGLang's server lets the model go on.
    "chat, tool results": (CHAT, {"messages": _HISTORY, "temperature": 0} | _TOOLS | {"max_tokens": 12}),
    "chat, continued": (
        CHAT,
        _chat(_ASK, "The capital of Norway is")[1] | {"continue_final_message": True, "add_generation_prompt": False},
    ),
    "reasoning": _thinking(),
    "reasoning in the text": _thinking(separate_reasoning=False),
    "reasoning turned off": _thinking(enabled=False),
    "reasoning cut": _thinking(max_tokens=4),
    "reasoning in one piece": _thinking(stream_reasoning=False),
    "reasoning, two choices": _thinking(n=2),
    "reasoning, log probabilities": _thinking(logprobs=True, top_logprobs=2, max_tokens=14),
    "reasoning, schema": _thinking(response_format=_schema({"enum": ["yes", "no"]})),
    "reasoning in the text, schema": _thinking(separate_reasoning=False, response_format=_schema({"enum": ["yes"]})),
    "reasoning turned off, schema": _thinking(enabled=False, response_format=_schema({"enum": ["yes", "no"]})),
    "reasoning, regex": _thinking(regex="(even|odd)!"),
    "reasoning, tool required": _thinking(**_TOOLS, tool_choice="required"),
    "reasoning, tool named": _thinking(**_TOOLS, tool_choice=_NAMED),
    "reasoning, tools left alone": _thinking(**_TOOLS),
    "text": _text("The capital of Norway is"),
    "text, ids": _text([504, 3575, 282, 23823, 314]),
    "text, two prompts": _text(["The capital of Norway is", "One, two, three,"]),
    "text, two lists of ids": _text([[504, 3575, 282, 23823, 314], [3725, 28, 827, 28]]),
    "text, two choices": _text("The capital of Norway is", n=2),
    "text, two prompts, two choices": _text(["The capital of Norway is", "One, two, three,"], n=2),
    "text, echo": _text("The capital of Norway is", echo=True),
    "text, echo with log probabilities": _text("The capital of Norway is", echo=True, logprobs=1, max_tokens=1),
    "text, log probabilities": _text("The capital of Norway is", logprobs=2),
    "text, stop": _text("One, two, three,", stop=[" six"], max_tokens=20),
    "text, one token": _text("The capital of Norway is", max_tokens=1),
    "text, schema": _text(
        "Ann is 30. As JSON: ",
        json_schema='{"type": "object", "properties": {"age": {"type": "integer", "maximum": 99}}}',
        max_tokens=24,
    ),
    "text, regex": _text("A number:", regex=r" [0-9]{3}"),
    "text, penalties": _text("a a a a a a", frequency_penalty=1.0, presence_penalty=0.5),
    "text, past the end": _text("The end.", ignore_eos=True, max_tokens=20),
}
_STREAMED = (
    *("chat", "chat, to the end", "chat, stop string", "chat, two choices", "chat, top log probabilities"),
    *("chat, schema", "chat, tool required", "chat, tool named", "chat, tools left alone", "chat, tool results"),
    *("reasoning", "reasoning in the text", "reasoning cut", "reasoning in one piece", "reasoning, schema"),
    *("reasoning, tool required", "reasoning, two choices"),
    *("chat, characters beyond ASCII", "text", "text, two prompts", "text, echo", "text, stop"),
)


def _parts(*texts: str) -> list[Body]:
    return [{"type": "text", "text": text} for text in texts]


# Messages as clients send them: each one's tokens are counted, and one is generated. A later system message is not
# among them: this template leaves it out, which SGLang's server does not say and presift refuses.
_SHAPES: dict[str, list[Body]] = {
    "two parts": [{"role": "user", "content": _parts("Name the capital", "of Norway.")}],
    "parts with white space": [{"role": "user", "content": _parts(" Name \n", "\n\n the capital ")}],
    "an empty part": [{"role": "user", "content": _parts("Name", "", "it.")}],
    "parts of a system message": [
        {"role": "system", "content": _parts("Be brief.", "Be kind.")},
        {"role": "user", "content": _ASK},
    ],
    "white space around": [{"role": "user", "content": f"\n\t {_ASK}  \n"}],
    "an empty message": [{"role": "user", "content": ""}, {"role": "user", "content": _ASK}],
    "two users": [{"role": "user", "content": "Hello."}, {"role": "user", "content": _ASK}],
    "two answers": [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hi."},
        {"role": "assistant", "content": "Ask."},
        {"role": "user", "content": _ASK},
    ],
    "an answer first": [{"role": "assistant", "content": "Hi."}, {"role": "user", "content": _ASK}],
    "an answer without content": [*_HISTORY[:2], {"role": "user", "content": "And?"}],
    "a result in parts": [*_HISTORY[:2], {**_HISTORY[2], "content": _parts("Rain,", "7 degrees.")}],
    "a result that is JSON": [*_HISTORY[:2], {**_HISTORY[2], "content": '{"rain": [1, "\\u00e9"]}'}],
    "keys of answers": [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hi.", "refusal": None, "tool_calls": None},
        {"role": "user", "content": _ASK, "name": "Ann"},
    ],
}
_BASE |= {
    f"shape, {name}": (CHAT, {"messages": messages, "temperature": 0} | _TOOLS | {"max_tokens": 1})
    for name, messages in _SHAPES.items()
}
REQUESTS: dict[str, tuple[str, Body]] = _BASE | {
    f"{name}, streamed": (path, body | {"stream": True, "stream_options": {"include_usage": True}})
    for name, (path, body) in _BASE.items()
    if name in _STREAMED
}
