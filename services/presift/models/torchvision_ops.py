"""The torchvision trap: PyPI's torchvision is a CUDA build, and beside a CPU torch its C++ operators do not load.

Its Python half then registers fake kernels for two operators whose schemas the missing library would have brought, and
`import torchvision` fails; SGLang and transformers both import it. Declaring the two schemas beforehand is enough.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# A torch.library.Library takes its schemas with it when it is collected.
_declared: list[Any] = []


def declare_missing() -> bool:
    """Declare what `import torchvision` needs, if its operators do not load here. True if that was needed.

    Call it before the first import of SGLang, in every process. Where torchvision matches torch, or is not installed,
    nothing is declared. Calling it again does nothing.
    """
    library = _library()
    if _declared or library is None or _are_known() or _loads(library):
        return bool(_declared)
    _declare()
    return True


def _library() -> Path | None:
    # For a top-level package find_spec does not import it.
    spec = importlib.util.find_spec("torchvision")
    folders = spec.submodule_search_locations if spec else None
    return next(Path(folders[0]).glob("_C*.so"), None) if folders else None


def _are_known() -> bool:
    import torch  # noqa: PLC0415 - heavy, and the module is imported by processes that may not need it

    return hasattr(torch.ops.torchvision, "nms")


def _loads(library: Path) -> bool:
    import torch  # noqa: PLC0415

    try:
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except OSError:
        return False
    return True


def _declare() -> None:
    import torch  # noqa: PLC0415

    namespace = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        namespace.define(schema)  # type: ignore[no-untyped-call]
    _declared.append(namespace)
