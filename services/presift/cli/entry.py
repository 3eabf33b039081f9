"""The console script. It needs no package but presift's own, so that it can say which extra is missing."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version


def main() -> None:
    """Run the command, or say what to install: the base wheel has the client library's requirements alone."""
    if sys.argv[1:] == ["--version"]:
        print(f"presift {version()}")
        return
    try:
        from presift.cli.app import app  # noqa: PLC0415 (needs the extra)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "presift", "presift_client"):  # broken, not incomplete
            raise
        sys.exit(missing_extra(package))
    app()


def version() -> str:
    """The version of the installed package; "unknown" where only its sources are on the path."""
    try:
        return installed_version("presift")
    except PackageNotFoundError:
        return "unknown"


def missing_extra(package: str) -> str:
    """What to install, and why."""
    return (
        f"error: the command `presift` needs the extra `cli`: the Python package {package} is not installed.\n"
        "Only presift's Python client (presift_client) can be used here. Install the extra from where presift came:\n"
        "  from a wheel:                 pip install 'presift-VERSION-py3-none-any.whl[cli]'\n"
        "  in a clone of the repository: pip install '.[cli]'\n"
        "`presift up` also runs the models, so it needs cli, draft and target: in a clone, `make install` has all."
    )
