"""One event loop in the background of the process, for engines that talk over the network.

A notebook's own loop is running already, so that nothing can be run in it from a cell; a daemon
thread has room for another, and ends with the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from workbench.progress import check

T = TypeVar("T")
NAME = "workbench-loop"
_lock = threading.RLock()  # a finalizer may ask while somebody does
_loop: asyncio.AbstractEventLoop | None = None


def start(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Begin `work` in the background; the future cancels it."""
    return asyncio.run_coroutine_threadsafe(work, background())


def run(work: Coroutine[Any, Any, T]) -> T:
    """Do `work` in the background and wait for it; an interrupt cancels it."""
    future = start(work)
    try:
        while not wait([future], timeout=0.5).done:
            check()
        return future.result()
    except BaseException:
        future.cancel()
        raise


def finish(close: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Close something of the loop's, from wherever: the collector may be at work in the loop."""
    future = start(close())
    if threading.current_thread().name != NAME:
        with contextlib.suppress(Exception):
            future.result(timeout=1.0)


def background() -> asyncio.AbstractEventLoop:
    """The loop, begun when it is first needed."""
    global _loop  # noqa: PLW0603  # one for the process
    with _lock:
        if _loop is None:
            made = asyncio.new_event_loop()
            threading.Thread(target=made.run_forever, name=NAME, daemon=True).start()
            _loop = made
        return _loop


def _forget() -> None:
    """A fork has the loop, but not the thread that runs it."""
    global _loop, _lock
    _loop, _lock = None, threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
