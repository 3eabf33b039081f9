"""Runs another program that dies with the process that started it. Run it by path; it needs only the standard library.

python die_with_parent.py PARENT_PID PROGRAM [ARGUMENT ...]

On Linux the kernel sends SIGTERM when the starting thread ends in any way; exec keeps that setting. This is not a
`preexec_fn`, because that may deadlock in a process with threads, such as gRPC's. On other systems it is a plain exec.
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
    if os.getppid() != parent_pid:  # the parent died before prctl
        sys.exit(1)
    os.execv(program, sys.argv[2:])


if __name__ == "__main__":
    main()
