"""All that reads foreign bytes costs no more than its input is long, and refuses what it cannot read in its own words.

The kept inputs and a share of random ones run in CI; `-m faults` runs many more, and longer ones. `PRESIFT_FUZZ_SEED`
takes another seed. A failure shows the growth, to be kept in the table of `parsers.py`; the same seed makes it again.
"""

from __future__ import annotations

import ast
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.message import Message

from .cost_oracle import Bounds, complaint, peak_bytes
from .growth import Growth, grown_fields, mutated_bytes, random_growth, repeated
from .parsers import KIB, NO_ROW, PARSERS, Parser

SERVICES = Path(__file__).parents[2] / "services" / "presift"
SEED = os.environ.get("PRESIFT_FUZZ_SEED", "presift")
# Random growths and mutations of each parser, the most bytes of a growth, and after how much time none grows further.
SHARES = [(20, 300, 32 * KIB, 0.02), pytest.param((150, 20_000, 256 * KIB, 0.1), marks=pytest.mark.faults)]
LONG = pytest.mark.timeout(3600)
# What parses: the name of a function, and what it is called on; empty for anything.
PARSING = {
    "loads": "json",
    "from_json": "",
    "FromString": "",
    "ParseFromString": "",
    "model_validate_json": "",
    "read_document": "",
    "decode": "jwt",
    "get_unverified_header": "jwt",
    "frombuffer": "",
    "urlsplit": "",
    "safe_load": "yaml",
    "ZstdDecompressor": "",
    "b64decode": "",
}


def kept(parser: Parser) -> list[Growth]:
    """The growths of the table, and one for each list and text of the messages that it begins with."""
    fields = [each for seed in parser.seeds if isinstance(seed, Message) for each in grown_fields(seed)]
    return [*parser.grown, *{each.name: each for each in fields}.values()]


@pytest.mark.parametrize("parser", PARSERS, ids=str)
def test_what_once_cost_too_much_does_not(parser: Parser) -> None:
    found = {
        str(growth): wrong
        for growth in kept(parser)
        if (wrong := complaint(parser.run, growth, parser.bounds, min(parser.most_bytes, 64 * KIB)))
    }
    assert not found


@LONG
@pytest.mark.parametrize("share", SHARES, ids=lambda each: str(each[0]))
@pytest.mark.parametrize("parser", PARSERS, ids=str)
def test_no_part_of_an_input_costs_more_than_it_is_long(parser: Parser, share: tuple[int, int, int, float]) -> None:
    growths, _, most_bytes, enough_s = share
    rng = random.Random(f"{SEED} {parser.name}")
    for number in range(growths):
        growth = random_growth(rng.choice(parser.seeds), parser.words, rng)
        wrong = complaint(parser.run, growth, parser.bounds, min(parser.most_bytes, most_bytes), enough_s)
        assert not wrong, f"growth {number} of {parser}, seed {SEED}: {wrong}\n{growth}"


@LONG
@pytest.mark.parametrize("share", SHARES, ids=lambda each: str(each[1]))
@pytest.mark.parametrize("parser", PARSERS, ids=str)
def test_what_cannot_be_read_is_refused_in_its_own_words(parser: Parser, share: tuple[int, int, int, float]) -> None:
    rng = random.Random(f"{SEED} {parser.name}")
    for number in range(share[1]):
        data = mutated_bytes(rng.choice(parser.seeds), rng)
        try:
            parser.run(data)
        except Exception as error:
            raise AssertionError(f"mutation {number} of {parser}, seed {SEED}: {data!r}") from error


@pytest.mark.parametrize("parser", PARSERS, ids=str)
def test_what_a_parser_begins_with_is_valid(parser: Parser) -> None:
    for seed in parser.seeds:
        parser.read(seed.SerializeToString() if isinstance(seed, Message) else seed)


def parses(source: str) -> bool:
    """Whether a module calls one of PARSING."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in PARSING:
            of = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
            if PARSING[node.func.attr] in ("", of):
                return True
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not PARSING.get(node.func.id, "-"):
            return True
    return False


def test_every_file_that_parses_is_in_the_table() -> None:
    known = {file for parser in PARSERS for file in parser.files} | NO_ROW.keys()
    found = {
        name
        for path in SERVICES.rglob("*.py")
        if not (name := str(path.relative_to(SERVICES))).startswith("v1/") and parses(path.read_text())
    }
    assert found <= known, sorted(found - known)
    assert all((SERVICES / file).is_file() for file in known)
    unneeded = NO_ROW.keys() - found
    assert not unneeded, f"they parse nothing any more: {unneeded}"


def test_what_parses_is_found() -> None:
    for source in (
        "json.loads(a)",
        "a.FromString(b)",
        "x = from_json(b)",
        "jwt.decode(a)",
        "A.B.model_validate_json(c)",
    ):
        assert parses(source)
    for source in ("raw.decode()", "urlsplit", "message.loads(a)"):
        assert not parses(source)


# --- the oracle itself ---

GENEROUS = Bounds(ms_per_kib=1e6, bytes_per_byte=1e6, fixed_ms=1e6)
LINES = repeated(b"", b"line #\n")


def linear(data: bytes) -> object:
    return [bytes(each) for each in data.split(b"\n")]


def sorting(data: bytes) -> object:
    return sorted(data.split(b"\n"), key=lambda each: each[::-1])


def quadratic(data: bytes) -> object:
    """Looks for each line among those before."""
    seen = list[bytes]()
    for each in data.split(b"\n"):
        if each not in seen:
            seen.append(each)
    return seen


def copying(data: bytes) -> object:
    """Copies the rest of the input for each line, as fast as memory is."""
    while (at := data.find(b"\n")) >= 0:
        data = data[at + 1 :]
    return data


def with_a_threshold(data: bytes) -> object:
    """Does a thorough check of long inputs only."""
    return sum(data) if len(data) > 20_000 else None


@pytest.mark.parametrize("read", [linear, sorting, with_a_threshold])
def test_a_cost_that_grows_as_the_input_is_no_complaint(read: Callable[[bytes], object]) -> None:
    assert complaint(read, LINES, GENEROUS, 1 << 20) == ""


@pytest.mark.parametrize("read", [quadratic, copying])
def test_quadratic_time_is_seen(read: Callable[[bytes], object]) -> None:
    assert complaint(read, LINES, GENEROUS, 1 << 20).startswith("time grows faster than the input: ")


def test_a_planted_quadratic_parser_is_found_by_random_growths() -> None:
    """In a language of its own: `word = value;`, whose words must differ."""

    def read(data: bytes) -> object:
        return quadratic(data.replace(b";", b"\n"))

    rng = random.Random("planted")
    growths = [random_growth(b"a1 = 2; b2 = 3; c3 = 4;", (b"a = 1;",), rng) for _ in range(40)]
    assert any(complaint(read, growth, GENEROUS, 64 * KIB, 0.05) for growth in growths)


def test_too_much_time_or_memory_is_seen() -> None:
    slow = Bounds(ms_per_kib=1e-6, bytes_per_byte=1e6, fixed_ms=0.0)
    assert " ms for " in complaint(linear, LINES, slow, 1 << 16)
    fat = Bounds(ms_per_kib=1e6, bytes_per_byte=1.0, fixed_ms=1e6, fixed_bytes=0)
    assert " bytes of memory for " in complaint(linear, LINES, fat, 1 << 16)


def test_memory_of_native_libraries_counts() -> None:
    from presift.v1 import orchestrator_pb2

    empty = orchestrator_pb2.GenerateRequest()
    for _ in range(1 << 20):
        empty.prompt.chat.messages.add()
    raw = empty.SerializeToString()
    del empty
    assert peak_bytes(orchestrator_pb2.GenerateRequest.FromString, raw) > 16 << 20
