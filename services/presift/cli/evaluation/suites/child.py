"""Runs in the Python that has a suite's packages; `foreign_python.py` starts it. It imports nothing of presift.

    PYTHON child.py find DISTRIBUTION:MODULE ... [punkt_tab]
    PYTHON child.py run SCRIPT [ARGUMENT ...]

`find` prints one JSON object: for each distribution its version and its module's folder, or null; for punkt_tab
whether NLTK finds it. `run` runs one of RULER's generators. Its tokenizer asks the parent: the length of a text in
bytes, a line feed and the text go to stdout, and a line with the number of tokens comes from stdin. What the generator
itself prints goes to stderr.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import types
from importlib import metadata, util
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

# Where llama-index-core has NLTK's data. No other package on PyPI is known to have it.
_DATA = ("llama-index-core", "llama_index/core/_static/nltk_cache")


def main() -> None:
    # The modules of this folder must not be taken for others of the same name.
    here = Path(__file__).resolve().parent
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != here]
    _add_nltk_data()
    action, *arguments = sys.argv[1:]
    if action == "find":
        print(json.dumps({name.partition(":")[0]: _find(name) for name in arguments}))
    else:
        _run(*arguments)


def _find(name: str) -> Any:
    distribution, _, module = name.partition(":")
    if not module:
        return _has_sentences()
    try:
        version, spec = metadata.version(distribution), util.find_spec(module)
    except metadata.PackageNotFoundError:
        return None
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or [os.path.dirname(spec.origin or "")])
    return {"version": version, "folder": places[0]}


def _add_nltk_data() -> None:
    """Before NLTK is imported."""
    distribution, folder = _DATA
    try:
        data = str(metadata.distribution(distribution).locate_file(folder))
    except metadata.PackageNotFoundError:
        return
    os.environ["NLTK_DATA"] = os.pathsep.join(filter(None, (os.environ.get("NLTK_DATA"), data)))


def _has_sentences() -> bool:
    try:
        return len(importlib.import_module("nltk.tokenize").sent_tokenize("One. Two.")) == 2
    except (ImportError, LookupError):
        return False


def _run(script: str, *arguments: str) -> None:
    tokenizer = StackTokenizer()
    for name in ("tokenizer", "long_context_eval.data.tokenizer"):
        stand_in: Any = types.ModuleType(name)
        stand_in.select_tokenizer = lambda *_: tokenizer
        sys.modules[name] = stand_in
    # As if the script were called: it imports its neighbours.
    sys.path.insert(0, str(Path(script).parent))
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


class StackTokenizer:
    """RULER's tokenizers have this method; their callers use only the length of the result."""

    def __init__(self) -> None:
        self._questions: BinaryIO = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)

    def text_to_tokens(self, text: str) -> range:
        """As many numbers as the text has tokens."""
        data = text.encode()
        try:
            self._questions.write(b"%d\n%s" % (len(data), data))
            self._questions.flush()
            answer = sys.stdin.buffer.readline()
        except BrokenPipeError:
            answer = b""
        return range(int(answer)) if answer else _end()


def _end() -> NoReturn:
    """The parent is gone. The generators catch every exception and try again, so this raises none."""
    os._exit(1)


if __name__ == "__main__":
    main()
