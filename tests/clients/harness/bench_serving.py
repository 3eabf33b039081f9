"""`bench_serving.py FOLDER ARGUMENTS...`: SGLang's benchmark, unchanged, with presift's environment for a plain CPU.

The benchmark imports `datasets` for data that is not used here. presift's environment has none: FOLDER does.
"""

import runpy
import sys

from presift.models.torchvision_ops import declare_missing

declare_missing()
sys.path.append(sys.argv.pop(1))
runpy.run_module("sglang.bench_serving", run_name="__main__")
