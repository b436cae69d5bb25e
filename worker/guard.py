"""Start a program that ends when its starter dies: ``python -m worker.guard PARENT PROGRAM ARGUMENTS``.

`alphaplus up` may be killed with SIGKILL, and then nobody stops its children. Linux sends a process the
signal that it asked for when its parent dies, and an exec keeps that request; so this asks, and becomes
the program. (A preexec_fn would do the same in a fork of a process with threads, which may deadlock.)
On other systems it only becomes the program.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, argv: list[str]) -> None:
    """Become ``argv``, to be sent SIGTERM when process ``parent`` is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked
            return
    os.execv(argv[0], argv)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
