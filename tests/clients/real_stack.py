"""`python -m tests.clients.real_stack MODEL_FOLDER`: a presift with a real model in SGLang, draft and target alike.

Its chat template is replaced by one that knows tools. It runs until stdin ends. Prints the URL of the HTTP API.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from presift.cli.stack.stack import LocalStack, StackOptions

from .stack import with_template

CONTEXT_TOKENS = 2_048


def main() -> int:
    with tempfile.TemporaryDirectory() as made:
        model = Path(made) / "model"
        shutil.copytree(sys.argv[1], model)
        with_template(Path(sys.argv[1]), model)
        (model / "chat_template.jinja").unlink(missing_ok=True)
        folder = str(model)
        options = StackOptions(
            draft=folder,
            target=folder,
            tokenizer=folder,
            logs=Path(made) / "logs",
            listen="127.0.0.1:0",
            http_listen="127.0.0.1:0",
            target_flags=[f"--context-tokens={CONTEXT_TOKENS}", "--kv-pool-tokens=8192"],
            orchestrator_flags=["--no-calibrate"],
        )
        with LocalStack(options, lambda line: print(line, file=sys.stderr)) as stack:
            print(f"http://{stack.http_addresses[0]}", flush=True)
            sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main())
