"""The process that compares expressions; run by its path, it imports nothing of workbench.

It reads lines of JSON `[seconds, first, second]` and answers each by `true`, `false` or `null`
(it cannot tell). It kills itself when the seconds are over, which stops even what runs in C, and
ends with its input, so that nothing is left behind whatever becomes of its owner.
"""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import signal
import sys
from contextlib import suppress
from importlib import import_module

MEMORY = 4 * 2**30
"""Bytes of address space: a tower of powers asks for more than any machine has."""


def main() -> None:
    """Serve until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    logging.disable()
    with suppress(OSError, ValueError):  # the time limit holds all the same
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    try:
        library = import_module("math_verify")
    except ImportError as error:
        print(json.dumps(str(error)), file=answers)
        return
    print(json.dumps("ready"), file=answers)
    for line in sys.stdin:
        seconds, first, second = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            pair = [library.parse(_formula(one), parsing_timeout=None) for one in (first, second)]
            verdict = library.verify(*pair, timeout_seconds=None) if all(pair) else None
        except Exception:  # noqa: BLE001 - a parser's and sympy's, of any kind
            verdict = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(verdict), file=answers)


def _formula(text: str) -> str:
    return "$" + re.sub(r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi", text) + "$"


if __name__ == "__main__":
    main()
