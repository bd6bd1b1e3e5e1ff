"""Becomes another program that ends with its parent, even when that is killed.

`python -I -S leash.py PARENT SIGNAL COMMAND…`, where PARENT is the process ID of the parent, and
SIGNAL the number of the signal that ends the program. Only Linux can tell a process of its parent's
death; elsewhere the program outlives a parent that is killed.
"""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Replaces this process by the command."""
    parent, number, *command = sys.argv[1:]
    if sys.platform == "linux":
        # Survives the exec below. Between fork and exec, where subprocess could run it, no Python
        # code is safe beside other threads.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))
    if os.getppid() != int(parent):
        sys.exit("the parent has ended")  # before the line above could tell
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
