"""Head profiles: which attention heads of a draft find what a prompt asks for. JSON files, made by `calibration`.

Related: retrieval heads (arXiv 2404.15574), QRHead (arXiv 2506.09944). The heads of the draft serve another model here.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from presift.core.errors import InvalidRequest
from presift.draft.layers import Layers
from presift.draft.scorer import HeadReduction
from presift.models.folder import ModelFolder

# Beside the model.
FILE_NAME = "presift-heads.json"


class HeadProfile(BaseModel):
    """The scored heads of one model, with their origin.

    `heads`: (layer, head) pairs, the best first. `reduction` says how their rows become one number per token. `recall`
    is the share (0..1) of the answers' tokens that these heads kept in the held-out prompts of the calibration,
    `default_recall` that of the default without a profile.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    model: str
    model_revision: str
    layers: int = Field(ge=1)
    heads_per_layer: int = Field(ge=1)
    heads: tuple[tuple[int, int], ...] = Field(min_length=1, strict=False)
    reduction: HeadReduction = Field(strict=False)
    recall: float = Field(ge=0, le=1)
    default_recall: float = Field(ge=0, le=1)
    created: str
    presift_version: str

    @property
    def by_layer(self) -> dict[int, tuple[int, ...]]:
        """The heads of each layer, in order."""
        found = defaultdict[int, list[int]](list)
        for layer, head in sorted(self.heads):
            found[layer].append(head)
        return {layer: tuple(heads) for layer, heads in found.items()}

    @property
    def layers_read(self) -> int:
        """How many layers of the model must run."""
        return max(layer for layer, _ in self.heads) + 1

    @property
    def digest(self) -> str:
        """16 hex digits that change with the heads and the reduction."""
        named = json.dumps([self.reduction, sorted(self.heads)])
        return hashlib.sha256(named.encode()).hexdigest()[:16]


def load(file: Path) -> HeadProfile:
    """Raises InvalidRequest if `file` is missing or is not a head profile."""
    try:
        return HeadProfile.model_validate_json(file.read_bytes())
    except OSError as error:
        raise InvalidRequest("head_profile", file, f"a readable file ({error.strerror})") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InvalidRequest("head_profile", file, f"a head profile ({where}: {first['msg']})") from None


def save(profile: HeadProfile, folder: ModelFolder, profiles: Path) -> Path:
    """Write `profile` beside its model or, if that folder is read-only, into `profiles`. Returns the file.

    Raises InvalidRequest if neither can be written.
    """
    for file in (folder.path / FILE_NAME, _kept_file(folder, profiles)):
        try:
            return write(profile, file)
        except InvalidRequest as error:
            failure = error
    raise failure


def write(profile: HeadProfile, file: Path) -> Path:
    """Write `profile` to `file`, and make its folder. Raises InvalidRequest if that is impossible."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(profile.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise InvalidRequest("head_profile", file, f"a file that can be written ({error.strerror})") from None
    return file


def find(setting: str, folder: ModelFolder, profiles: Path) -> HeadProfile | None:
    """The profile of a model by the setting `head_profile`: auto, none or a file. None without a profile.

    Raises InvalidRequest if the file is missing or damaged.
    """
    if setting == "none":
        return None
    if setting != "auto":
        return load(Path(setting))
    shipped = resources.files("presift.draft") / "profiles" / f"{folder.revision}.json"
    for file in (folder.path / FILE_NAME, _kept_file(folder, profiles)):
        if file.is_file():
            return load(file)
    return HeadProfile.model_validate_json(shipped.read_bytes()) if shipped.is_file() else None


def _kept_file(folder: ModelFolder, profiles: Path) -> Path:
    return profiles / f"{folder.revision}.json"


def check_fits(profile: HeadProfile, folder: ModelFolder, config: Any, layers: Layers) -> None:
    """Raise InvalidRequest unless `profile` belongs to the model of `folder`, of which these layers are loaded."""
    for name, found, expected in (
        ("model_revision", profile.model_revision, folder.revision),
        ("layers", profile.layers, config.num_hidden_layers),
        ("heads_per_layer", profile.heads_per_layer, config.num_attention_heads),
    ):
        if found != expected:
            raise InvalidRequest(f"head_profile.{name}", found, f"{expected}, as in the model {folder.id}")
    for layer, head in profile.heads:
        if not (0 <= layer < profile.layers and 0 <= head < profile.heads_per_layer):
            limit = f"layers 0..{profile.layers - 1}, heads 0..{profile.heads_per_layer - 1}"
            raise InvalidRequest("head_profile.heads", f"({layer}, {head})", limit)
    if profile.layers_read > layers.count:
        limit = f"<= {layers.count}, the loaded layers; load more with --layers 0..{profile.layers_read - 1}"
        raise InvalidRequest("head_profile.heads", f"{profile.layers_read} layers", limit)
    if other := sorted(profile.by_layer.keys() - set(layers.full)):
        limit = f"heads of layers with full attention: {', '.join(map(str, layers.full))}"
        raise InvalidRequest("head_profile.heads", f"heads of layer {other[0]}", limit)
