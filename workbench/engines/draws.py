"""Sampling without a seed: a call that was cut short resumes, a finished one is never replayed.

"The same call" is one with the same prompts in the same order and the same sampling, to the same
engine. After it ended early (an interrupt, a kill, failed rows) the next such call resumes it.
After it finished, or while it runs elsewhere, the next such call draws anew.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from importlib import import_module
from typing import Any

from workbench.machine import born
from workbench.store import Store, digest

HOST = socket.gethostname()
_running: set[tuple[str, int]] = set()  # calls of this process


class Draw:
    """One drawing of a call's answers.

    Attributes:
        number: tells its answers from those of the other drawings of the same call.

    Args:
        store: where the answers are kept; None has nothing to resume.
        call: digest of engine, sampling and prompts.
    """

    def __init__(self, store: Store | None, call: bytes) -> None:
        self._key = digest("draw", call.hex())
        self.number = 0
        if store is not None:
            try:
                store.update(self._key, self._begin)
            except BaseException:
                _running.discard(self._mark)
                raise

    @property
    def _mark(self) -> tuple[str, int]:
        return self._key.hex(), self.number

    def end(self, store: Store | None, *, finished: bool) -> None:
        """The call is over: for good, or to be resumed (as where the store is closed, and None)."""
        _running.discard(self._mark)

        def note(state: Any) -> Any:
            state["open"].pop(str(self.number), None)
            if not finished:
                state["open"][str(self.number)] = None
            return state

        if store is not None:
            store.update(self._key, note)

    def _begin(self, state: Any) -> Any:
        """Take the first drawing that was cut short, or a new one."""
        state = state or {"next": 0, "open": {}}
        free = [n for n, owner in state["open"].items() if not self._is_running(int(n), owner)]
        self.number = int(free[0]) if free else state["next"]
        state["next"] = max(state["next"], self.number + 1)
        state["open"][str(self.number)] = _process(os.getpid())
        _running.add(self._mark)  # before another thread can see it
        return state

    def _is_running(self, number: int, owner: list[Any] | None) -> bool:
        if owner is None:
            return False
        pid, started, host = owner
        if host != HOST:  # nobody here can know
            return True
        found = _process(pid)
        if found is None or found[1] != started:
            return False
        return bool(pid != os.getpid() or (self._key.hex(), number) in _running)


def _process(pid: int) -> list[Any] | None:
    """A process by its id, start and host, as ids are used again; None where there is none."""
    psutil: Any = import_module("psutil")
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            return [pid, born(pid), HOST]
    return None
