"""The only `vllm.LLM` in this process: loading, stepping, freeing.

Requests of several callers (threads, nested calls) share the engine's batch. The caller that holds
the lock steps, and finished outputs go to the inbox of the caller that sent the request.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from workbench.engines.checkpoints.checks import explain_load_error
from workbench.engines.cpu import fit
from workbench.engines.device import memory_ran_out
from workbench.errors import EngineError, EngineGoneError, InputError, WorkbenchError
from workbench.progress import stopping
from workbench.types import Message

log = logging.getLogger("workbench")


class Inbox:
    """One caller's requests (`pending`: our id → vLLM's internal id) and finished outputs."""

    def __init__(self) -> None:
        self.pending: dict[str, str] = {}
        self.finished: list[Any] = []


class SharedLLM:
    """A loaded model and the callers that share it."""

    _here: SharedLLM | None = None  # at most one per process: two would not fit

    def __init__(self, arguments: Mapping[str, Any], signature: str) -> None:
        self.signature = signature
        self._lock = threading.RLock()
        self._owners: dict[str, Inbox] = {}
        self._users = weakref.WeakSet[object]()
        self._interrupted = False
        self._lost: EngineGoneError | None = None  # why vLLM stopped mid-run, if it did
        self.note: str | None = None  # settings that were reduced to make the model fit
        self.llm: Any = self._load(arguments)

    @classmethod
    def acquire(cls, user: object, arguments: Mapping[str, Any], signature: str) -> SharedLLM:
        """The model of this process if it is the same; else free it and load the new one."""
        current = cls._here
        if current is not None and current.signature == signature:
            log.info("the model is in memory already")
        else:
            if current is not None:
                log.info("freeing the model that was open in this process")
                current.free()
            current = cls._here = cls(arguments, signature)
        current._users.add(user)
        return current

    def _load(self, arguments: Mapping[str, Any]) -> Any:
        logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
        if not (log_of_vllm := logging.getLogger("vllm")).level:  # its level is set only later
            log_of_vllm.setLevel(os.environ["VLLM_LOGGING_LEVEL"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                from vllm import LLM, EngineArgs
                from vllm.platforms import current_platform

                with _uncaptured_streams():
                    more: dict[str, Any] = {}
                    if current_platform.is_cpu():
                        explicit = {name for name, value in arguments.items() if value is not None}
                        more, self.note = fit(EngineArgs(**arguments), explicit)
                    # vLLM tries the chat template out, and the model's is a program that may
                    # not end.
                    llm = LLM(**{"chat_template": "{{ messages }}", **arguments, **more})
                    llm.chat_template = None
                    return llm
            except BaseException as error:
                # The frames hold what was loaded so far, and a notebook keeps the traceback.
                traceback.clear_frames(error.__traceback__)
                _clean_up()
                if not isinstance(error, Exception):
                    raise
                raise _explain(error, arguments) from error

    def release(self, user: object) -> None:
        """Free the model unless another engine still uses it."""
        self._users.discard(user)
        if not self._users:
            self.free()

    def send(
        self,
        inbox: Inbox,
        prompt: Sequence[int] | Sequence[Message],
        params: Any,
        lora: Any,
        **chat: Any,
    ) -> str:
        """Queue one prompt; returns the id that its output will have.

        Args:
            prompt: token ids, or a chat with images, which vLLM itself reads with the arguments
                `chat` of `LLM.enqueue_chat`.
        """
        with self._lock, self._hold_interrupt():
            llm = self._open()
            with refusals():
                if chat:
                    (inside,) = llm.enqueue_chat(
                        [prompt], params, use_tqdm=False, lora_request=lora, **chat
                    )
                else:
                    (inside,) = llm.enqueue(
                        [{"prompt_token_ids": list(prompt)}], params, use_tqdm=False,
                        lora_request=lora,
                    )  # fmt: skip
            outside = str(inside).rsplit("-", 1)[0]  # vLLM appends a random part to its id
            inbox.pending[outside] = inside
            self._owners[outside] = inbox
            return outside

    def take(self, inbox: Inbox) -> list[Any]:
        """Step until this caller has finished outputs; returns and removes them."""
        while not inbox.finished and inbox.pending and not self.interrupted:
            with self._lock:
                if not inbox.finished:
                    self._open()
                    if not self.unfinished():
                        raise EngineError(
                            "vLLM has lost requests that this call waits for: something else "
                            "took their outputs (such as llm.generate() within an open stream)"
                        )
                    self._step()
        finished, inbox.finished = inbox.finished, []
        return finished

    def abort(self, inbox: Inbox) -> None:
        """Remove this caller's unfinished requests from the engine."""
        with self._lock, self._hold_interrupt():
            if inbox.pending and self.llm is not None:
                self.llm.llm_engine.abort_request(list(inbox.pending.values()), internal=True)
            for outside in inbox.pending:
                self._owners.pop(outside, None)
            inbox.pending.clear()
        if _in_main_thread():
            self._interrupted = False

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C was pressed (for the main thread), or a watcher stopped this work."""
        return (self._interrupted and _in_main_thread()) or stopping()

    def bare(self, prompts: Sequence[str], params: Any, lora: Any) -> list[Any]:
        """Run `LLM.generate`, which cannot be interrupted: Ctrl-C takes effect after it."""
        with self._lock, self._hold_interrupt():
            try:
                outputs: list[Any] = self._open().generate(
                    list(prompts), params, use_tqdm=False, lora_request=lora
                )
            except (ValueError, RuntimeError) as error:
                raise EngineError(f"LLM.generate failed: {error}") from error
        if self.interrupted:
            if _in_main_thread():
                self._interrupted = False
            raise KeyboardInterrupt
        return outputs

    def unfinished(self) -> int:
        """Number of requests inside vLLM, over all callers."""
        with self._lock:
            return 0 if self.llm is None else self.llm.llm_engine.get_num_unfinished_requests()

    def free(self) -> None:
        """Free the model's memory."""
        with self._lock:
            if self.llm is None:
                return
            llm, self.llm = self.llm, None
            with suppress(Exception):  # some executors need no shutdown
                llm.llm_engine.engine_core.shutdown()
            del llm
            _clean_up()
            if SharedLLM._here is self:
                SharedLLM._here = None

    def _open(self) -> Any:
        if self._lost is not None:  # for every caller, not only the one that stepped
            raise EngineGoneError(str(self._lost)) from self._lost
        if self.llm is None:
            raise EngineError(
                "this engine is closed (close() was called, or another one was opened in this "
                "process); call open_engine(…) again"
            )
        return self.llm

    def _step(self) -> None:
        with self._hold_interrupt():
            try:
                outputs = self._open().llm_engine.step()
            except WorkbenchError:
                raise
            except Exception as error:
                self.free()  # it must not count as a loaded model
                self._lost = EngineGoneError(
                    f"vLLM stopped mid-run: {error}. Finished rows are in the store; open the "
                    "engine again (with smaller max_num_seqs or max_model_len if memory ran out)"
                )
                raise self._lost from error
            for output in outputs:
                if output.finished and (owner := self._owners.pop(output.request_id, None)):
                    owner.pending.pop(output.request_id, None)
                    owner.finished.append(output)

    @contextmanager
    def _hold_interrupt(self) -> Iterator[None]:
        """Delay Ctrl-C until a step has ended, so that vLLM's state stays consistent."""
        if not _in_main_thread():
            yield
            return

        def note(*_: object) -> None:
            self._interrupted = True

        before = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)


@contextmanager
def refusals() -> Iterator[None]:
    """Turn vLLM's refusal of a request into an `InputError`."""
    from vllm.exceptions import VLLMError

    kinds = (ValueError, TypeError, LookupError, ArithmeticError, RecursionError, VLLMError)
    try:
        yield
    except kinds as error:
        refusal = " ".join(str(error).split())
        raise InputError(f"vLLM refuses this request: {refusal:.600}") from error


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _clean_up() -> None:
    from vllm.distributed import cleanup_dist_env_and_memory

    gc.collect()
    cleanup_dist_env_and_memory()
    gc.collect()


@contextmanager
def _uncaptured_streams() -> Iterator[None]:
    """Keep what native libraries write to file descriptor 2 while loading out of the output.

    In a notebook those lines would become part of the stored output. vLLM reports failures as
    exceptions.
    """
    if "ipykernel" not in sys.modules:
        yield
        return
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def _explain(error: Exception, arguments: Mapping[str, Any]) -> Exception:
    if isinstance(error, WorkbenchError):
        return error
    text = " ".join(str(error).split())
    where = f"model {arguments['model']!r} could not be loaded"
    if memory_ran_out(error):
        return EngineError(
            f"{where}: out of memory ({text:.400}). Use a smaller max_model_len, max_num_seqs, "
            "kv_cache_memory_bytes or gpu_memory_utilization, a quantised model, or close other "
            "kernels"
        )
    if not isinstance(error, RuntimeError):
        return InputError(explain_load_error(arguments["model"], error))
    return EngineError(f"{where}: {type(error).__name__}: {text:.600}")
