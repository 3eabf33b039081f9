"""`python -m presift.target.stock_server ARGUMENTS`: SGLang's own HTTP server on a plain CPU.

On a GPU, `PRESIFT_SGLANG_PLUGIN=1 python -m sglang.launch_server ARGUMENTS` is meant to do the same (not tried yet).
None of presift's services is involved in either. A plain CPU needs torchvision's missing operators before SGLang is
imported, in each of its processes: its children import the main module again, so they are declared here.
"""

from __future__ import annotations

import os
import sys

from presift.models.torchvision_ops import declare_missing
from presift.target import sglang_plugin

# What a plain CPU cannot do without; anything may be said otherwise.
_DEFAULTS = ("--device", "cpu", "--attention-backend", "torch_native", "--disable-cuda-graph", "--sleep-on-idle")


def main() -> None:
    """Does not return until the server ends."""
    os.environ.setdefault(sglang_plugin.SWITCH, "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    sys.argv[1:1] = [*_DEFAULTS, "--sampling-backend", "pytorch", "--skip-server-warmup"]
    from sglang.launch_server import run_server  # noqa: PLC0415 - heavy, and only once torchvision is mended
    from sglang.srt.plugins import load_plugins  # noqa: PLC0415
    from sglang.srt.server_args import prepare_server_args  # noqa: PLC0415

    load_plugins()
    run_server(prepare_server_args(sys.argv[1:]))


if __name__ in {"__main__", "__mp_main__"}:
    declare_missing()

if __name__ == "__main__":
    main()
