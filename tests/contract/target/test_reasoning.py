"""Reasoning, content and calls over gRPC: what SGLang's parsers find in the whole answer, however it was cut.

The engine is presift's. Only SGLang's tokenizer manager is replaced: it says what a test dictates.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from presift.core.answer import AnswerFormat, ToolChoice
from presift.core.plan import Route
from presift.models.torchvision_ops import declare_missing
from presift.rpc import answer_codec
from presift.rpc.server.server import GrpcServer, ServerOptions
from presift.target.admission import Admission
from presift.target.engine import EngineInfo
from presift.target.servicer import TargetServicer
from presift.target.sglang.answer_parser import ParserNames
from presift.target.sglang.engine import SglangEngine
from presift.target.sglang.parsers import Parsers
from presift.target.sglang.tools import tools_of
from presift.v1 import target_pb2, target_pb2_grpc

from ...echo_engine import ECHO_MODEL

if find_spec("sglang") is None:
    pytest.skip("needs SGLang", allow_module_level=True)
declare_missing()

# SGLang reads an argument of GLM's format, which has no type there, otherwise in a stream if the tool gives it no type.
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}, "text": {"type": "string"}}}
TOOLS = tuple(
    json.dumps({"type": "function", "function": {"name": name, "parameters": PARAMETERS}}) for name in ("add", "sum")
)
ADD, SUM = ("add", {"a": 1}), ("sum", {"text": "<x> [1]\n"})
CALL_END = 200012
STOP, LENGTH = {"type": "stop", "matched": 2}, {"type": "length"}
Parts = tuple[str, str, list[tuple[str, Any]]]


class Characters:
    """A tokenizer whose tokens are characters, but for the one that ends gpt-oss's calls."""

    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(each) for each in text]

    def decode(self, ids: Iterable[int], **_: Any) -> str:
        return "".join("<|call|>" if each == CALL_END else chr(each) for each in ids)

    def convert_tokens_to_ids(self, token: str) -> int:
        return ord(token[0])

    def get_vocab(self) -> dict[str, int]:
        return {}


@dataclass
class Manager:
    """SGLang's tokenizer manager: it answers the prompt `n` with `answers[n]`, one message for each piece."""

    answers: list[tuple[Sequence[str], dict[str, Any]]] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)
    rid_to_state: dict[str, Any] = field(default_factory=dict)
    load_snapshot_reader: Any = field(default_factory=lambda: SimpleNamespace(read_all=list))

    async def generate_request(self, request: Any) -> AsyncIterator[dict[str, Any]]:
        self.asked.append(request)
        pieces, reason = self.answers[request.input_ids[0]]
        for count, piece in enumerate(pieces, 1):
            await asyncio.sleep(0)  # The other choices go on.
            counts = {"prompt_tokens": len(request.input_ids), "cached_tokens": 0, "completion_tokens": count}
            end = reason if count == len(pieces) else None
            meta = {**counts, "finish_reason": end, "reasoning_tokens": count // 2}
            yield {"text": piece, "output_ids": [count + 100], "meta_info": meta}


class ScriptedSglang(SglangEngine):
    """SGLang's engine with parsers, without SGLang's processes."""

    def __init__(self, family: Family) -> None:
        super().__init__(SimpleNamespace(data_parallel=1))  # type: ignore[arg-type] - options are for the start
        self.family = family
        self._manager = self.manager = Manager()
        self._parsers = Parsers(ParserNames(family.tool_calls, family.reasoning), Characters(), lambda _: family.thinks)
        has = {"tool_call_parser": family.tool_calls, "reasoning_parser": family.reasoning, "grammars": True}
        self._info = EngineInfo("scripted 1", replace(ECHO_MODEL, vocabulary_size=1 << 21), (Route.FULL,), True, **has)


@dataclass(frozen=True)
class Family:
    """A family of models. `thinks`: its answers begin with reasoning unless the `prompt` ends otherwise."""

    reasoning: str
    tool_calls: str
    begin: str
    end: str
    call: Callable[[str, Any], str] | None = None
    between: str = ""
    thinks: bool = True
    prompt: str = "Hi"

    @property
    def is_thinking(self) -> bool:
        return self.thinks and "</think>" not in self.prompt

    def calls(self, *calls: tuple[str, Any]) -> str:
        assert self.call is not None
        return self.between.join(self.call(*each) for each in calls)


def _json(name: str, arguments: Any) -> str:
    return json.dumps({"name": name, "arguments": arguments})


def _kimi(name: str, arguments: Any) -> str:
    call = f"functions.{name}:0<|tool_call_argument_begin|>{json.dumps(arguments)}"
    return f"<|tool_calls_section_begin|><|tool_call_begin|>{call}<|tool_call_end|><|tool_calls_section_end|>"


def _glm(name: str, arguments: Any) -> str:
    pairs = "\n".join(f"<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>" for key, value in arguments.items())
    return f"<tool_call>{name}\n{pairs}\n</tool_call>"


def _mistral(name: str, arguments: Any) -> str:
    return f"[TOOL_CALLS] [{_json(name, arguments)}]"


def _qwen(name: str, arguments: Any) -> str:
    return f"<tool_call>\n{_json(name, arguments)}\n</tool_call>"


def _harmony(name: str, arguments: Any) -> str:
    header = f"<|start|>assistant<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
    return f"{header}{json.dumps(arguments)}<|call|>"


QWEN = Family("qwen3", "qwen", "<think>\n", "\n</think>\n\n", _qwen, "\n")
FAMILIES = {
    "qwen3": QWEN,
    "qwen3, closed by the prompt": replace(QWEN, prompt="<think>\n\n</think>\n\n"),
    "deepseek-r1, opened by the prompt": Family("deepseek-r1", "", "", "</think>\n\n", prompt="<think>\n"),
    "deepseek-r1": Family("deepseek-r1", "", "<think>", "</think>"),
    "glm45": Family("glm45", "glm45", "<think>", "</think>\n", _glm, "\n"),
    "kimi_k2": Family("kimi_k2", "kimi_k2", "<think>", "</think>", _kimi),
    "kimi": Family("kimi", "", "◁think▷", "◁/think▷", thinks=False),
    "mistral": Family("mistral", "mistral", "[THINK]", "[/THINK]", _mistral, thinks=False),
    "gpt-oss": Family("gpt-oss", "gpt-oss", "<|channel|>analysis<|message|>", "<|end|>", _harmony),
}
FINAL = "<|start|>assistant<|channel|>final<|message|>"


def answers_of(family: Family) -> dict[str, tuple[str, dict[str, Any]]]:
    """What models say, and why the answer ends. In the harmony format content has a mark of its own."""
    begin, end, final = family.begin, family.end, FINAL if family.reasoning == "gpt-oss" else ""
    answers = {
        "reasoning and text": (f"{begin}2 + 2 < 5,\nso 4.{end}{final}It is 4.\n", STOP),
        "empty reasoning": (f"{begin}{end}{final}It is 4.", STOP),
        "only white space for reasoning": (f"{begin}\n\n{end}{final}It is 4.", STOP),
        "reasoning alone": (f"{begin}I am done.{end}", STOP),
        "reasoning cut by the length": (f"{begin}It is a long", LENGTH),
        "reasoning cut inside a mark": (f"{begin}It is{end.strip()[:-2]}", LENGTH),
        "reasoning that ends like a mark": (f"{begin}a <", LENGTH),
        "text cut by the length": (f"{begin}Hm.{end}{final}It is <", LENGTH),
        "text that looks like a mark": (f"{begin}Hm.{end}{final}</ <| [/ ◁ <thin", LENGTH),
        "marks of others": (f"{begin}<b>[x]</b> <| |>{end}{final}<i>[/y]</i>", STOP),
        "no text at all": ("", STOP),
    }
    if family.reasoning != "gpt-oss":
        answers["the marks again in the text"] = (f"{begin}a{end}b {begin.strip()}c{end.strip()}d", STOP)
        answers["the end twice"] = (f"{begin}a{end}{end}b", STOP)
    else:
        answers["reasoning in two parts"] = (f"{begin}a{end}<|start|>assistant{begin}b{end}{final}c", STOP)
        answers["text alone"] = (final.removeprefix("<|start|>assistant") + "It is 4.", STOP)
        answers["its end in the text"] = (f"{begin}Hm.{end}{final}It is 4.<|return|>", STOP)
    if not family.is_thinking:
        answers["no reasoning"] = ("It is 4.", STOP)
    return answers


def calls_of(family: Family) -> dict[str, tuple[str, dict[str, Any]]]:
    """Answers that call tools."""
    thought = f"{family.begin}I need a tool.{family.end}"
    answers = {
        "a call right after the reasoning": (thought + family.calls(ADD), STOP),
        "a call after empty reasoning": (family.begin + family.end + family.calls(ADD), STOP),
    }
    if family.reasoning == "gpt-oss":
        preamble = "<|start|>assistant<|channel|>commentary<|message|>My analysis: I add.<|end|>"
        answers["text and a call"] = (thought + preamble + family.calls(ADD), STOP)
        answers["text that names channels"] = (f"{thought}{FINAL}My analysis, a commentary. 1 < 2", STOP)
    else:
        answers["text and a call"] = (f"{thought}I add.\n{family.calls(ADD)}", STOP)
        answers["text alone"] = (f"{thought}No tool fits: <b>.", STOP)
    if family.reasoning in ("qwen3", "glm45"):
        answers["two calls"] = (thought + family.calls(ADD, SUM), STOP)
    if family.reasoning in ("qwen3", "glm45", "kimi_k2"):
        answers["a call that ends the reasoning"] = (f"{family.begin}I need a tool.\n{family.calls(ADD)}", STOP)
    return answers


def whole(family: Family, text: str, tools: tuple[str, ...] = ()) -> Parts:
    """What SGLang's parsers make of the whole answer, as in its server."""
    from sglang.srt.function_call.function_call_parser import FunctionCallParser
    from sglang.srt.parser.reasoning_parser import ReasoningParser

    options = {"stream_reasoning": False, "force_reasoning": family.is_thinking, "tokenizer": Characters()}
    reasoning, content = ReasoningParser(family.reasoning, **options).parse_non_stream(text)
    calls: list[Any] = []
    if tools:
        parser = FunctionCallParser(tools_of(AnswerFormat(tools)), family.tool_calls, tokenizer=Characters())
        if parser.has_tool_call(content or ""):
            content, calls = parser.parse_non_stream(content or "")
    return reasoning or "", content or "", [(each.name, json.loads(each.parameters)) for each in calls]


def cuts_of(text: str) -> list[list[str]]:
    """Each character alone, in twos, threes, ...; the whole; two pieces, cut anywhere; and cut at random."""
    chance, size = random.Random(text), len(text)
    places = [list(range(step, size, step)) for step in (1, 2, 3, 5, 7, 11)]
    places += [[], *([cut] for cut in range(1, size))]
    places += [sorted(chance.sample(range(1, size), min(size - 1, 6))) for _ in range(20) if size > 1]
    return [[text[begin:end] for begin, end in itertools.pairwise([0, *each, size])] for each in places]


@dataclass
class Target:
    engine: ScriptedSglang
    stub: target_pb2_grpc.TargetServiceAsyncStub

    async def answers(
        self, cuts: Sequence[Sequence[str]], reason: dict[str, Any], wanted: AnswerFormat | None, **sampling: Any
    ) -> list[Answer]:
        """One answer for each cut, all at once."""
        self.engine.manager.answers = [(pieces, reason) for pieces in cuts]
        form = None if wanted is None else answer_codec.format_to_wire(wanted)
        return await asyncio.gather(*(self._answer(number, form, **sampling) for number in range(len(cuts))))

    async def _answer(self, number: int, form: target_pb2.AnswerFormat | None, **sampling: Any) -> Answer:
        prompt = [number, *map(ord, self.engine.family.prompt)]
        values = target_pb2.Sampling(max_new_tokens=1000, **sampling)
        request = target_pb2.TargetServiceGenerateRequest(token_ids=prompt, sampling=values, format=form)
        *deltas, end = [event async for event in self.stub.Generate(request, timeout=30)]
        return Answer([event.delta for event in deltas], end.usage)


@dataclass
class Answer:
    deltas: list[target_pb2.AnswerDelta]
    usage: target_pb2.TargetUsage

    @property
    def parts(self) -> Parts:
        """Reasoning, content and calls."""
        parsed = [delta.parsed for delta in self.deltas]
        names: dict[int, str] = {}
        arguments: dict[int, str] = {}
        for call in (each for part in parsed for each in part.tool_calls):
            names[call.index] = names.get(call.index) or call.name
            arguments[call.index] = arguments.get(call.index, "") + call.arguments
        calls = [(names[index], json.loads(arguments[index])) for index in names]
        return "".join(each.reasoning for each in parsed), "".join(each.content for each in parsed), calls

    def check(self, pieces: Sequence[str], finish: int) -> None:
        """The counts and the end, which no parser changes."""
        tokens = [token for delta in self.deltas for token in delta.token_ids]
        assert tokens == list(range(101, 101 + len(pieces)))
        assert (self.usage.completion_tokens, self.usage.reasoning_tokens) == (len(pieces), len(pieces) // 2)
        assert self.usage.finish_reason == finish


@asynccontextmanager
async def serving(family: Family) -> AsyncIterator[Target]:
    engine, servicer = ScriptedSglang(family), TargetServicer(Admission(max_running=1000, max_waiting=0))
    servicer.use(engine)
    server = GrpcServer(ServerOptions("127.0.0.1:0"), [])
    target_pb2_grpc.add_TargetServiceServicer_to_server(servicer, server.grpc)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{await server.start()}") as channel:
        yield Target(engine, target_pb2_grpc.TargetServiceStub(channel))
    await server.drain()


FINISH = {"stop": target_pb2.FINISH_REASON_STOP, "length": target_pb2.FINISH_REASON_LENGTH}


def cases(answers: Callable[[Family], dict[str, Any]], families: Iterable[str]) -> Any:
    return [
        pytest.param(FAMILIES[name], *answer, id=f"{name}: {what}")
        for name in families
        for what, answer in answers(FAMILIES[name]).items()
    ]


@pytest.mark.parametrize(("family", "text", "reason"), cases(answers_of, FAMILIES))
async def test_any_cut_gives_the_reasoning_and_the_text_of_the_whole(
    family: Family, text: str, reason: dict[str, Any]
) -> None:
    cuts, expected = cuts_of(text), whole(family, text)
    async with serving(family) as target:
        found = await target.answers(cuts, reason, AnswerFormat(separate_reasoning=True))
    for pieces, answer in zip(cuts, found, strict=True):
        assert answer.parts == expected, pieces
        answer.check(pieces, FINISH[reason["type"]])


@pytest.mark.parametrize(
    ("family", "text", "reason"), cases(calls_of, (name for name, each in FAMILIES.items() if each.call))
)
async def test_any_cut_gives_the_calls_after_the_reasoning(family: Family, text: str, reason: dict[str, Any]) -> None:
    cuts, (reasoning, content, calls) = cuts_of(text), whole(family, text, TOOLS)
    async with serving(family) as target:
        found = await target.answers(cuts, reason, AnswerFormat(TOOLS, separate_reasoning=True))
    for pieces, answer in zip(cuts, found, strict=True):
        assert (answer.parts[0], answer.parts[2]) == (reasoning, calls), pieces
        # SGLang's parsers of calls remove white space around content if they read it as a whole.
        assert answer.parts[1].strip() == content.strip(), pieces
        answer.check(pieces, target_pb2.FINISH_REASON_TOOL_CALLS if calls else target_pb2.FINISH_REASON_STOP)


async def parts_of(family: Family, text: str) -> tuple[str, str]:
    """Reasoning and content, which are the same for all cuts."""
    async with serving(family) as target:
        found = await target.answers(cuts_of(text), STOP, AnswerFormat(separate_reasoning=True))
    (parts,) = {answer.parts[:2] for answer in found}
    return parts


@pytest.mark.parametrize("text", ["It is 4.", "a < b"])
async def test_an_answer_without_marks_is_content_where_sglang_drops_it(text: str) -> None:
    # The prompt may have begun the final message already.
    assert whole(FAMILIES["gpt-oss"], text) == ("", "", [])
    assert await parts_of(FAMILIES["gpt-oss"], text) == ("", text)


@pytest.mark.parametrize("name", ["qwen3", "glm45", "kimi_k2"])
async def test_reasoning_that_names_a_call_ends_there_as_in_sglangs_stream(name: str) -> None:
    """SGLang's streaming parser cannot see the end mark that follows; its parser of whole answers looks for it."""
    family, mark = FAMILIES[name], FAMILIES[name].calls(ADD).partition(">")[0] + ">"
    text = f"<think>I may write {mark} here.</think>It is 4."
    assert whole(family, text)[:2] == (f"I may write {mark} here.", "It is 4.")
    assert await parts_of(family, text) == ("I may write ", f"{mark} here.</think>It is 4.")


@pytest.mark.parametrize("name", ["qwen3, closed by the prompt", "glm45", "deepseek-r1"])
async def test_text_before_the_opening_mark_keeps_its_place_as_in_sglangs_stream(name: str) -> None:
    """SGLang's parser of whole answers counts it, and the mark, as reasoning; its streaming parser removes the mark."""
    family, text = FAMILIES[name], "\n<think>a</think>b"
    assert whole(family, text)[:2] == ("\n<think>a", "b")
    assert await parts_of(family, text) == (("\na", "b") if family.is_thinking else ("a", "\nb"))


@pytest.mark.parametrize("wanted", [None, AnswerFormat()], ids=["no chat", "a chat"])
@pytest.mark.parametrize("name", FAMILIES)
async def test_reasoning_stays_in_the_text_unless_it_is_wanted(name: str, wanted: AnswerFormat | None) -> None:
    text, reason = answers_of(FAMILIES[name])["reasoning and text"]
    async with serving(FAMILIES[name]) as target:
        found = await target.answers(cuts_of(text), reason, wanted)
    # Without a format the orchestrator makes the text from the tokens.
    assert {answer.parts[:2] for answer in found} == {("", "" if wanted is None else text)}


FORCED = {
    "deepseek-r1": '[{"name": "add", "parameters": {"a": 1}}]',
    "glm45": '[{"name": "add", "parameters": {"a": 1}}]',
    "qwen3": QWEN.calls(ADD),
    # Its grammar begins a call without the beginning of a message.
    "gpt-oss": _harmony(*ADD).removeprefix("<|start|>assistant"),
}


@pytest.mark.parametrize("name", FORCED)
async def test_a_forced_call_follows_the_reasoning(name: str) -> None:
    family = FAMILIES[name]
    cuts, wanted = cuts_of(f"{family.begin}[Hm]{family.end}{FORCED[name]}"), AnswerFormat(TOOLS, ToolChoice.REQUIRED)
    async with serving(family) as target:
        found = await target.answers(cuts, STOP, replace(wanted, separate_reasoning=True))
    for pieces, answer in zip(cuts, found, strict=True):
        reasoning, content, calls = answer.parts
        assert (reasoning.strip(), content.strip(), calls) == ("[Hm]", "", [ADD]), pieces
        answer.check(pieces, target_pb2.FINISH_REASON_TOOL_CALLS)


async def test_a_call_of_gpt_oss_is_found_in_a_request_with_stop_strings() -> None:
    """Its last token ends the answer, and with stop strings SGLang leaves that token's text to presift."""
    family = FAMILIES["gpt-oss"]
    text = f"{family.begin}Hm.{family.end}{family.calls(ADD)}"
    async with serving(family) as target:
        reason = {"type": "stop", "matched": CALL_END}
        found = await target.answers(cuts_of(text), reason, AnswerFormat(TOOLS, separate_reasoning=True), stop=["END"])
    assert [answer.parts for answer in found] == [("Hm.", "", [ADD])] * len(found)


async def test_a_stop_string_ends_the_answer_inside_the_reasoning() -> None:
    text = "<think>\nIt is EN or END. No.\n</think>\n\n4"
    async with serving(QWEN) as target:
        reason = {"type": "stop", "matched": "END"}
        found = await target.answers(cuts_of(text), reason, AnswerFormat(separate_reasoning=True), stop=["END"])
    assert {answer.parts[:2] for answer in found} == {("\nIt is EN or ", "")}
