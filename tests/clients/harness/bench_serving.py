"""`bench_serving.py ARGUMENTS...`: SGLang's benchmark, unchanged, with presift's environment for a plain CPU.

The benchmark imports `datasets` for data that is not used here; presift's environment has none.
"""

import runpy
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

from presift.models.torchvision_ops import declare_missing

if find_spec("datasets") is None:
    stand_in = sys.modules["datasets"] = ModuleType("datasets")
    # transformers looks for the package too.
    stand_in.__spec__ = ModuleSpec("datasets", None)
    stand_in.load_dataset = None
declare_missing()
runpy.run_module("sglang.bench_serving", run_name="__main__")
