"""`python -m presift.target.stock_server ARGUMENTS`: SGLang's own HTTP server with the presift plugin, on a plain CPU.

On a GPU, `PRESIFT_SGLANG_PLUGIN=1 python -m sglang.launch_server ARGUMENTS` should do the same (untested). The plugin
checks itself in the scheduler before it drops KV. No presift service is involved. On a plain CPU, torchvision's missing
operators must be declared in each process before SGLang is imported. SGLang's children import the main module again, so
they are declared at the end of this module.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from presift.models.torchvision_ops import declare_missing
from presift.target import sglang_plugin
from presift.target.sglang.arguments import divide_cores

# Needed on a plain CPU; the command line can override them.
_DEFAULTS = ("--device", "cpu", "--attention-backend", "torch_native", "--disable-cuda-graph", "--sleep-on-idle")


def main() -> None:
    """Run the server; returns when it ends."""
    os.environ.setdefault(sglang_plugin.SWITCH, "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    sys.argv[1:1] = [*_DEFAULTS, "--sampling-backend", "pytorch", "--skip-server-warmup"]
    from sglang.launch_server import run_server  # noqa: PLC0415 - heavy, and only after declare_missing
    from sglang.srt.plugins import load_plugins  # noqa: PLC0415
    from sglang.srt.server_args import prepare_server_args  # noqa: PLC0415

    load_plugins()
    arguments = prepare_server_args(sys.argv[1:])
    ranks = arguments.tp_size * arguments.dp_size
    if arguments.device == "cpu" and arguments.pp_size == 1 and ranks > _numa_nodes():
        divide_cores(ranks, os.environ)
    run_server(arguments)


def _numa_nodes() -> int:
    return len(list(Path("/sys/devices/system/node").glob("node[0-9]*")))


if __name__ in {"__main__", "__mp_main__"}:
    declare_missing()

if __name__ == "__main__":
    main()
