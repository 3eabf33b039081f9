"""Answers of a fake target that come separated, as from a target with parsers."""

import json

from presift.v1 import target_pb2

FINISHES = {"stop": target_pb2.FINISH_REASON_STOP, "length": target_pb2.FINISH_REASON_LENGTH}
FINISHES["tool_calls"] = target_pb2.FINISH_REASON_TOOL_CALLS


def call(index, *, name="", arguments="", id=""):
    return target_pb2.ToolCallDelta(index=index, id=id, name=name, arguments=arguments)


def says(target, *pieces, finish="stop", reasoning_tokens=0):
    """Make `target` answer with these pieces: texts, ("reasoning", text) or tool calls, a token each."""

    async def answer(request, context):
        for piece in pieces:
            kind, value = piece if isinstance(piece, tuple) else ("content", piece)
            if isinstance(value, target_pb2.ToolCallDelta):
                parsed = target_pb2.ParsedText(tool_calls=[value])
            else:
                parsed = target_pb2.ParsedText(**{kind: value})
            delta = target_pb2.TokenDelta(token_ids=[65], parsed=parsed)
            yield target_pb2.TargetServiceGenerateResponse(delta=delta)
        usage = target_pb2.TargetUsage(
            prompt_tokens=len(request.token_ids),
            kv_tokens=len(request.token_ids),
            cached_tokens=3,
            completion_tokens=len(pieces),
            finish_reason=FINISHES[finish],
            reasoning_tokens=reasoning_tokens,
            ttft_ms=7.0,
        )
        yield target_pb2.TargetServiceGenerateResponse(usage=usage)

    target._answer = answer


def shows_calls(stack):
    """Give the stack a chat template that writes tool calls."""
    plain = stack.tokenizer.renderer.template

    def template(messages, tools, *more, **variables):
        return plain(
            [message | {"content": message["content"] + _calls(message)} for message in messages],
            tools,
            *more,
            **variables,
        )

    stack.tokenizer.renderer.template = template


def _calls(message):
    calls = [each["function"] for each in message.get("tool_calls") or ()]
    return "".join(f"<call>{each['name']}{json.dumps(each['arguments'])}</call>" for each in calls)


def can_restrict(target):
    """Give a fake target, not connected yet, parsers and grammars."""
    target.abilities = {"tool_call_parser": "qwen25", "reasoning_parser": "qwen3", "grammars": True}
