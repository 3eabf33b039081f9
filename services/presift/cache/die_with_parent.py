"""Become another program that dies with the process that started it. Run by path, alone: standard library only.

python die_with_parent.py PARENT_PID PROGRAM [ARGUMENT ...]

On Linux the kernel sends SIGTERM when the starting thread ends, however it ends; exec keeps that wish. Done here and
not in a `preexec_fn`, which may deadlock in a process with threads, and gRPC has threads. Elsewhere it is a plain exec.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent_pid, program = int(sys.argv[1]), sys.argv[2]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent_pid:  # it died before the kernel knew our wish
        sys.exit(1)
    os.execv(program, sys.argv[2:])


if __name__ == "__main__":
    main()
