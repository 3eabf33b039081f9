"""Bodies of chat completions as clients send them, one per shape. `marks` are the control tokens of the template, and
`own` those of them that a prompt for tools may not name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Body = dict[str, Any]

LONG = "A long report of the harvest, line by line. " * 30
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks a word up in a dictionary",
        "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string", "description": 'the word, "quoted"'}},
            "required": ["word"],
        },
    },
}


def say(role: str, content: Any = None, **given: Any) -> dict[str, Any]:
    return {"role": role, "content": content} | given


def part(text: str, **given: Any) -> dict[str, Any]:
    return {"type": "text", "text": text} | given


def call(number: int, arguments: str) -> dict[str, Any]:
    return {
        "id": f"call{number:05}",
        "type": "function",
        "function": {"name": "look_up", "arguments": arguments},
    }


def result(number: int, content: Any) -> dict[str, Any]:
    return say("tool", content, tool_call_id=f"call{number:05}")


def body(*messages: dict[str, Any], **given: Any) -> Body:
    return {"messages": list(messages)} | given


RULES = say("system", "Answer in one sentence.")
FIRST, ANSWER, QUESTION = say("user", "What is rain?"), say("assistant", "Water that falls."), say("user", "And hail?")
ASKED = say("user", "What does rain mean?")
CALL = '{"word": "drizzle"}'


def with_tools(*messages: dict[str, Any]) -> Body:
    return body(*messages, tools=[TOOL])


SHAPES: dict[str, Callable[[str, str], Body]] = {
    "plain": lambda marks, own: body(FIRST, ANSWER, QUESTION),
    "one question": lambda marks, own: body(QUESTION),
    "system": lambda marks, own: body(RULES, FIRST, ANSWER, QUESTION),
    "two systems": lambda marks, own: body(RULES, say("system", "Never say no."), QUESTION),
    "later system": lambda marks, own: body(RULES, FIRST, ANSWER, say("system", "Now be brief."), QUESTION),
    "empty answer": lambda marks, own: body(FIRST, say("assistant", ""), QUESTION),
    "null answer": lambda marks, own: body(FIRST, say("assistant", None), QUESTION),
    "several parts": lambda marks, own: body(
        say("user", [part("One part."), part("Another part.")]), ANSWER, say("user", [part("Third."), part("Why?")])
    ),
    "system in parts": lambda marks, own: body(say("system", [part("Be kind."), part("Be brief.")]), QUESTION),
    "users in a row": lambda marks, own: body(FIRST, say("user", "I mean here."), QUESTION),
    "answers in a row": lambda marks, own: body(FIRST, ANSWER, say("assistant", "Often cold."), QUESTION),
    "answer first": lambda marks, own: body(ANSWER, QUESTION),
    "tools": lambda marks, own: with_tools(RULES, FIRST, ANSWER, QUESTION),
    "only a call": lambda marks, own: with_tools(
        ASKED, say("assistant", None, tool_calls=[call(1, CALL)]), result(1, "wet")
    ),
    "text beside a call": lambda marks, own: with_tools(
        ASKED, say("assistant", "Let me see.", tool_calls=[call(1, CALL)]), result(1, "wet air"), ANSWER, QUESTION
    ),
    "calls at once": lambda marks, own: with_tools(
        ASKED,
        say("assistant", "", tool_calls=[call(1, CALL), call(2, '{"word": "sleet"}')]),
        result(1, "wet air"),
        result(2, "cold air"),
    ),
    "results out of order": lambda marks, own: with_tools(
        ASKED,
        say("assistant", "", tool_calls=[call(1, CALL), call(2, '{"word": "sleet"}')]),
        result(2, "cold air"),
        result(1, "wet air"),
    ),
    "result without content": lambda marks, own: with_tools(
        ASKED, say("assistant", None, tool_calls=[call(1, CALL)]), result(1, None), ANSWER, QUESTION
    ),
    "result in parts": lambda marks, own: with_tools(
        ASKED, say("assistant", None, tool_calls=[call(1, CALL)]), result(1, [part("wet"), part("air")])
    ),
    "calls without tools": lambda marks, own: body(
        ASKED, say("assistant", None, tool_calls=[call(1, CALL)]), result(1, "wet air"), ANSWER, QUESTION
    ),
    "blank arguments": lambda marks, own: with_tools(
        ASKED, say("assistant", None, tool_calls=[call(1, "")]), result(1, "wet air")
    ),
    "broken arguments": lambda marks, own: with_tools(
        ASKED, say("assistant", None, tool_calls=[call(1, '{"word": "dri')]), result(1, "no JSON")
    ),
    "reasoning in tags": lambda marks, own: body(
        FIRST, say("assistant", "<think>\nIt is wet.\n</think>\n\nFalling water."), QUESTION
    ),
    "reasoning apart": lambda marks, own: body(
        FIRST, say("assistant", "Falling water.", reasoning_content="It is wet."), QUESTION
    ),
    "reasoning before a call": lambda marks, own: with_tools(
        ASKED,
        say("assistant", None, reasoning_content="I look.", tool_calls=[call(1, CALL)]),
        result(1, "wet air"),
    ),
    "closing tag alone": lambda marks, own: body(FIRST, say("assistant", "It is wet.\n</think>\n\nFalling."), QUESTION),
    "prefill": lambda marks, own: body(FIRST, say("assistant", "It is water that"), continue_final_message=True),
    "marks in a document": lambda marks, own: body(say("user", [part(f"A {marks} z", document=True), part("Why so?")])),
    "marks in a result": lambda marks, own: with_tools(
        ASKED, say("assistant", None, tool_calls=[call(1, CALL)]), result(1, f"A {marks} z")
    ),
    "marks in a definition": lambda marks, own: body(
        QUESTION, tools=[{"type": "function", "function": TOOL["function"] | {"description": f"A {marks} z"}}]
    ),
    "marks in arguments": lambda marks, own: with_tools(
        ASKED,
        say("assistant", None, tool_calls=[call(1, f'{{"word": "A {marks} z"}}')]),
        result(1, "wet air"),
    ),
    "marks in rules": lambda marks, own: body(say("system", f"A {own} z"), QUESTION),
    "nearly marks": lambda marks, own: body(say("user", f"[INST <<SYS>> <|x|> {own[:-1]}"), ANSWER, QUESTION),
    "white space": lambda marks, own: body(say("system", "\n Be kind. "), say("user", "  Hi \n\n"), ANSWER, QUESTION),
    "private-use characters": lambda marks, own: body(
        say("user", "\ue000 7\ue001 \ue0020\ue003 \uf8ff"), ANSWER, QUESTION
    ),
    "a protected part": lambda marks, own: body(
        say("user", [part("Keep me.", protected=True), part("Not me.")]), ANSWER, QUESTION
    ),
    "a protected answer": lambda marks, own: body(FIRST, ANSWER | {"protected": True}, QUESTION),
    "a long text": lambda marks, own: body(say("user", [part(LONG), part("What is it?")])),
    "a document in a result": lambda marks, own: with_tools(
        ASKED, say("assistant", None, tool_calls=[call(1, CALL)]), result(1, [part(f"A {marks} z", document=True)])
    ),
    "no parameters": lambda marks, own: body(
        QUESTION,
        tools=[
            {
                "type": "function",
                "function": {
                    "name": "now",
                    "description": "Tells time",
                    "parameters": {"type": "object", "properties": {}},
                },
            }
        ],
    ),
    "a long document": lambda marks, own: body(RULES, say("user", [part(LONG, document=True), part("What is it?")])),
}
