"""Makes `import torchvision` work with a CPU build of torch.

PyPI's torchvision is a CUDA build, so its C++ operators do not load with a CPU build of torch. Its Python code then
registers fake kernels for two operators without a schema, and `import torchvision` fails. SGLang and transformers both
import it. Declaring the two schemas before that is enough.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# Kept, because a torch.library.Library removes its schemas when it is garbage-collected.
_declared: list[Any] = []


def declare_missing() -> bool:
    """Declare the operators that `import torchvision` needs if its library does not load. True if it was necessary.

    Call it in every process before SGLang is imported. It does nothing if torchvision matches torch or is not
    installed, and nothing on a second call.
    """
    library = _library()
    if _declared or library is None or _are_declared() or _loads(library):
        return bool(_declared)
    _declare()
    return True


def _library() -> Path | None:
    # find_spec does not import a top-level package.
    spec = importlib.util.find_spec("torchvision")
    folders = spec.submodule_search_locations if spec else None
    return next(Path(folders[0]).glob("_C*.so"), None) if folders else None


def _are_declared() -> bool:
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
