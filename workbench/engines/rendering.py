"""Chat templates are programs of whoever made the model: they may not end."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

PATIENCE = 5.0  # seconds for one chat
T = TypeVar("T")


def rendered(render: Callable[[T], str], chats: Iterable[T]) -> list[str]:
    """`render` of each chat, in a thread of their own that is stopped where one does not end.

    Raises:
        TimeoutError: one took longer than `PATIENCE`.
    """
    made: list[str] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for chat in chats:
                made.append(render(chat))  # noqa: PERF401  # what is done so far is watched
        except BaseException as error:  # noqa: BLE001  # raised again where it is awaited
            failed.append(error)

    thread = threading.Thread(target=work, name="chat template", daemon=True)
    thread.start()
    done, since = 0, time.monotonic()
    try:
        while thread.is_alive():
            thread.join(0.1)
            if len(made) > done:
                done, since = len(made), time.monotonic()
            elif thread.is_alive() and time.monotonic() - since > PATIENCE:
                raise TimeoutError(f"it did not end within {PATIENCE:g} s")
    finally:
        _stop(thread)
    if failed:
        raise failed[0]
    return made


def _stop(thread: threading.Thread) -> None:
    """End it if it still runs (Ctrl-C, or it took too long); it is Python, so an exception does."""
    if thread.is_alive() and thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
        )
