"""Texts are encoded by a call that releases Python's global lock: `Tokenizer.encode` of tokenizers holds it, so that
every other answer stands still while a long prompt is tokenized; `encode_batch` releases it."""

import ast
from pathlib import Path

SERVICES = Path(__file__).parents[2] / "services" / "presift"

# presift's own classes and modules with a method or function of this name, which call `encode_batch`.
OWN = {"_control", "raw_tokens"}


def holding_calls(source):
    """The lines that call `encode` of a tokenizer. That of a str has no argument, or encoding and errors as literals
    or keywords."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"encode", "encode_plus"}
        and _name(node.func.value) not in OWN
        and not _is_of_str(node)
    ]


def _name(node):
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _is_of_str(call):
    literal = all(isinstance(each, ast.Constant) and isinstance(each.value, str) for each in call.args)
    return literal and {each.arg for each in call.keywords} <= {"encoding", "errors"}


def test_no_text_is_encoded_while_the_lock_is_held():
    found = {str(path.relative_to(SERVICES)): holding_calls(path.read_text()) for path in SERVICES.rglob("*.py")}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_a_call_that_holds_the_lock_is_found():
    for call in ("self._draft.encode(text)", "backend.encode(text, add_special_tokens=False)", "a.b.encode(*texts)"):
        assert holding_calls(call) == [1], call
    assert holding_calls("Tokenizer.from_file(path).encode(f'{text}')") == [1]
    assert holding_calls("tokenizer.encode('a', add_special_tokens=True)") == [1]
    for call in ("text.encode()", "text.encode('utf-8', 'replace')", "text.encode(errors='surrogatepass')"):
        assert holding_calls(call) == [], call
    assert holding_calls("backend.encode_batch([text])[0]") == []
