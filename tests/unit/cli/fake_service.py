"""A service whose flags choose its behaviour; the tests of the command run it as a module."""

import signal
import sys
import time

ready = "--refuse" not in sys.argv and "--silent" not in sys.argv
if "--deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "--polite" in sys.argv:

    def leave(number, frame):
        print("drained", flush=True)
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave)
print("some noise: presift is not ready on this", flush=True)
print("words on stderr", file=sys.stderr, flush=True)
if "--http" in sys.argv:
    print("presift orchestrator takes HTTP on 127.0.0.1:4712", flush=True)
if ready:
    print(f"presift {sys.argv[1]} ready on 127.0.0.1:4711: model x ready on y", flush=True)
if "--error" in sys.argv:
    error = sys.argv[sys.argv.index("--error") + 1]
    print(f"{error}\n2026-01-01 10:00:00,1 INFO x leaving", file=sys.stderr, flush=True)
if "--refuse" in sys.argv:
    sys.exit(3)
if "--brief" in sys.argv:
    sys.exit(5)
time.sleep(600)
