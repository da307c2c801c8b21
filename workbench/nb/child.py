"""The child process: execute one notebook through papermill; the exit code says how it ended.

It is started by its path and stands alone, so that nothing of the parent's state reaches it. The
order comes as a pickle on stdin, which the parent then holds open: its end is the parent's end.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading

OK = 0
FAILED = 10
KILLED = 11
INTERRUPTED = 12


def _follow_parent() -> None:
    # os.read, not sys.stdin: a thread that holds stdin's lock at exit aborts the interpreter.
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGINT)


def main() -> int:
    """Run the ordered notebook and return the exit code."""
    order = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_follow_parent, daemon=True).start()
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from papermill.execute import execute_notebook

    try:
        execute_notebook(**order, progress_bar=False, coalesce_streams=True)
    except PapermillExecutionError:
        return FAILED
    except DeadKernelError:
        return KILLED
    except KeyboardInterrupt:
        return INTERRUPTED
    return OK


if __name__ == "__main__":
    sys.exit(main())
