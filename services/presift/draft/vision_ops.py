"""A work-around for one broken neighbour: torchvision built for another torch.

The draft does not use torchvision, but transformers imports it wherever it is installed, and SGLang's environment
installs it. PyPI's torchvision is a CUDA build whose C++ operators do not load beside a CPU torch; its import then
fails on two missing schemas, and transformers with it. A torchvision that imports is left alone: its own operators
would clash with ours.
"""

from __future__ import annotations

import importlib
import importlib.util

import torch

_SCHEMAS = {
    "torchvision::nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "torchvision::qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def mend() -> None:
    """Make `import torchvision` work, if it is installed and fails for want of operators. Call before importing
    transformers.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name, signature in _SCHEMAS.items():
            torch.library.define(name, signature)
        importlib.import_module("torchvision")
