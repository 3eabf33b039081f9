"""The authors' vectors, and what their words are called here. See data/README.md, the section on ties first."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from presift.core.policies import Pool, Reduction, SpecKv, SpecPc

Config = Mapping[str, Any]

_POOLS = {"max": Pool.MAX, "mean": Pool.MEAN, "avg": Pool.MEAN, None: Pool.NONE}
_REDUCTIONS = {"max": Reduction.MAX, "mean": Reduction.SUM}


@dataclass(frozen=True)
class Vectors:
    """One json file and the arrays beside it."""

    json: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]

    def stable(self, name: str) -> NDArray[Any]:
        """The array as it is with ties to the lower index: `name`_low where that differs from `name`."""
        return self.arrays.get(f"{name}_low", self.arrays.get(name))


@pytest.fixture(scope="session")
def vectors(reference_dir: Path) -> Callable[[str], Vectors]:
    """name -> Vectors."""

    @functools.cache
    def load(name: str) -> Vectors:
        with np.load(reference_dir / f"{name}.npz") as arrays:
            return Vectors(json.loads((reference_dir / f"{name}.json").read_text()), dict(arrays))

    return load


@pytest.fixture(scope="session")
def spec_pc() -> Callable[[Config], SpecPc]:
    """The authors' SpecPC config -> our policy."""

    def build(config: Config) -> SpecPc:
        return SpecPc(
            capacity=config["max_capacity_prompt"],
            window=config["window_size"],
            pool=_POOLS[config["pool_type"]],
            kernel=config["kernel_size"],
            neighbors=config["neighbor_tokens"],
        )

    return build


@pytest.fixture(scope="session")
def spec_kv() -> Callable[[Config], SpecKv]:
    """The authors' SpecKV config -> our policy."""

    def build(config: Config) -> SpecKv:
        return SpecKv(
            capacity=config["max_capacity_prompt"],
            window=config["window_size"],
            pool=_POOLS[config["pool_type"]],
            kernel=config["kernel_size"],
            reduction=_REDUCTIONS[config["reduction_type"]],
        )

    return build
