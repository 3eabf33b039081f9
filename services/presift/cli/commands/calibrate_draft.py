"""`presift calibrate-draft`: find the attention heads of a draft that matter, so that it need not run all layers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import Progress

from presift.cli.demo_models import check_model, resolve_model
from presift.cli.render.console import exit_on_error, print_stderr
from presift.cli.settings import CliSettings
from presift.core.errors import PresiftError
from presift.draft import head_profile
from presift.models.dtype import fastest_dtype
from presift.models.folder import ModelFolder, resolve

if TYPE_CHECKING:
    from presift.draft.calibration import Calibration


def calibrate_draft(
    *,
    model: Annotated[str, typer.Option(help="draft: a model folder, demo model or hub id")],
    output: Annotated[
        Path | None, typer.Option(help="file for the profile; beside the model (else in PRESIFT_HOME) if unset")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "int8"] | None,
        typer.Option(help="data type of the draft; as the draft service chooses if unset"),
    ] = None,
    device: Annotated[str, typer.Option(help="torch device: cpu, cuda, cuda:1, ...")] = "cpu",
) -> None:
    """Find the heads of a draft that point at what a question asks for, and write its head profile.

    Reads a synthetic document and 36 questions about it. A draft with a profile runs only the layers that it needs.
    Restart the draft to use the file.
    """
    with exit_on_error():
        home = CliSettings().home
        if find_spec("torch") is None or find_spec("transformers") is None:
            raise PresiftError("calibrate-draft runs the model: install the extra draft where presift came from")
        check_model("--model", model, home)
        folder = resolve(resolve_model(model, home, print_stderr))
        found = _calibrate(folder, dtype or fastest_dtype(device), device)
        if found.profile is None:
            print(f"no set of heads beats the default: recall {found.recall:.3f} against {found.default_recall:.3f}")
            return
        profile = found.profile
        if output is None:
            file = head_profile.save(profile, folder, home / "head-profiles")
        else:
            file = head_profile.write(profile, output)
    print(
        f"{len(profile.heads)} heads in {profile.layers_read} of {profile.layers} layers; recall {profile.recall:.3f},"
        f" by default {profile.default_recall:.3f}; written to {file}"
    )


def _calibrate(folder: ModelFolder, dtype: str, device: str) -> Calibration:
    # Imported here: the other commands need no torch.
    from presift.draft.calibration import PREFIX_CACHE_BYTES, calibrate  # noqa: PLC0415
    from presift.draft.scorer import Cancel  # noqa: PLC0415
    from presift.draft.transformers_scorer import TransformersScorer  # noqa: PLC0415

    scorer = TransformersScorer(folder, dtype, device, prefix_cache_bytes=PREFIX_CACHE_BYTES)
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("calibrating", total=None)
        return calibrate(scorer, folder, lambda done, total: bar.update(task, completed=done, total=total), Cancel())
