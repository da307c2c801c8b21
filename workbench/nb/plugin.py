"""A pytest plugin that has nbval judge a notebook as Jupyter runs and shows it.

`pytest --nbval -p workbench.nb.plugin`. To the letter, as nbval does, but that

- tables shown by `approx` are compared within their tolerances;
- a cell fails as soon as its kernel dies, and those after it at once;
- a cell fails if the kernel says that it failed, whether an error was shown or not, and one that is
  marked as raising fails if it does not;
- a cell tagged `skip-execution` is skipped;
- a semicolon at the end hides the value, and `_` and `Out` have those before;
- `clear_output` and updates of a display change what a cell shows, up to the cell's end.
"""

from __future__ import annotations

import math
import time
from queue import Empty
from typing import TYPE_CHECKING, Any

import nbformat
import nbval.plugin
from nbval.kernel import RunningKernel
from nbval.plugin import IPyNbCell

from workbench.nb.bundle import MIME, SHOWN, differences, paired
from workbench.nb.notebook import SKIP
from workbench.nb.validate import DIED

if TYPE_CHECKING:
    import pytest

SLICE = 1.0  # seconds
new_output: Any = nbformat.v4.new_output
_OUTPUTS = {"stream", "display_data", "execute_result", "error"}


def pytest_configure() -> None:
    """Have nbval take our kernels, and know one more tag."""
    nbval.plugin.RunningKernel = _Kernel
    nbval.plugin.metadata_tags[SKIP] = "skip"


def pytest_itemcollected(item: pytest.Item) -> None:
    """Make a cell of nbval's, which makes them under a fixed name, one of ours."""
    if isinstance(item, IPyNbCell):
        item.__class__ = _Cell


class _DiedError(Exception):
    """The kernel is not there any more."""


class _Kernel(RunningKernel):
    """Knows which cell it was asked last, what it replied (empty: nothing), and where it died."""

    asked = ""
    reply: dict[str, Any]
    died = ""

    def execute_cell_input(self, cell_input: str, allow_stdin: bool | None = None) -> str:
        self.reply = {}
        # With history, unlike nbval's: else a semicolon hides no value, and `_` has none.
        self.asked = self.kc.execute(cell_input, allow_stdin=allow_stdin, stop_on_error=False)
        return self.asked

    def get_message(self, stream: str, timeout: float | None = None) -> dict[str, Any]:
        end = time.monotonic() + (math.inf if timeout is None else timeout)
        while True:
            left = max(0.0, end - time.monotonic())
            try:
                return self._message(stream, min(left, SLICE))
            except Empty:
                if not self.is_alive():
                    raise _DiedError from None
                if left <= SLICE:
                    raise

    def _message(self, stream: str, timeout: float) -> dict[str, Any]:
        message: dict[str, Any] = super().get_message(stream, timeout)
        if stream == "shell":
            self.reply = message["content"]
        return message


class _Cell(IPyNbCell):
    comparison_traceback: list[Any]
    clears: bool
    places: dict[str, list[int]]

    def runtest(self) -> None:
        kernel = self.parent.kernel
        self.clears, self.places = False, {}
        self.parent.get_kernel_message = self._message
        if not (self.options["skip"] or self.parent.timed_out or kernel.is_alive()):
            self._dead()
        try:
            super().runtest()
        except _DiedError:
            self._dead()
        self._check(kernel.reply)

    def _dead(self) -> None:
        kernel = self.parent.kernel
        if kernel.died:
            self.raise_cell_error(f"not run: the kernel died in {kernel.died}")
        kernel.died = self.name
        index = next(i for i, cell in enumerate(self.parent.nb.cells) if cell is self.cell)
        self.user_properties.append((DIED, index))
        self.raise_cell_error("the kernel died")

    def _check(self, reply: dict[str, Any]) -> None:
        """Of what nbval passes, fail what the kernel's own word is against."""
        if not reply:
            self.raise_cell_error("its time was up")
        raised, meant = reply["status"] == "error", self.options["check_exception"]
        if raised and not meant:
            self.raise_cell_error(f"{reply['ename']}: {reply['evalue']}")
        if meant and not raised:
            self.raise_cell_error("it is marked as raising, and raised nothing")

    def _message(self, timeout: float | None = None, stream: str = "iopub") -> dict[str, Any]:
        """The next message that nbval has to see."""
        kernel = self.parent.kernel
        while True:
            message: dict[str, Any] = kernel.get_message(stream, timeout)
            own = message["parent_header"].get("msg_id") == kernel.asked
            if not (own and self._applied(message["msg_type"], message["content"])):
                return message

    def _applied(self, kind: str, content: dict[str, Any]) -> bool:
        """Apply what a message does to the outputs so far; whether it does nothing else."""
        if kind == "clear_output":
            self.clears = True
        if self.clears and (kind in _OUTPUTS or not content.get("wait", True)):
            self.test_outputs.clear()
            self.clears, self.places = False, {}
        if place := (content.get("transient") or {}).get("display_id"):
            shown = self.places.setdefault(place, [])
            for index in shown:
                self.test_outputs[index].update(data=content["data"], metadata=content["metadata"])
            if kind in _OUTPUTS:
                shown.append(len(self.test_outputs))
        return kind in {"clear_output", "update_display_data"}

    def _hidden(self, test: list[Any] | None) -> list[Any]:
        """An error that the kernel only printed, which a run puts into the copy."""
        reply = self.parent.kernel.reply
        shown = any("ename" in output for output in test or ())
        if shown or reply.get("status") != "error" or not self.options["check_exception"]:
            return []
        return [new_output("error", ename=reply["ename"], evalue=reply["evalue"], traceback=[])]

    def compare_outputs(
        self, test: list[Any] | None, ref: list[Any] | None, skip_compare: Any = None
    ) -> bool:
        """Compare the tables, then the rest with each new table taken for the stored one."""
        fresh, stored = [*(test or ()), *self._hidden(test)], list(ref or ())
        wrong: list[str] = []
        counts = [
            sum(MIME in output.get("data", ()) for output in side) for side in (stored, fresh)
        ]
        if counts[0] != counts[1]:
            wrong.append(f"tables with tolerances: stored {counts[0]}, new {counts[1]}")
        for place, old in paired(stored, fresh):
            wrong += differences(old["data"], fresh[place]["data"])
            fresh[place] = _as_stored(fresh[place], old["data"])
        same: bool = super().compare_outputs(fresh, stored, skip_compare)
        # nbval joins the lines, and not all that it puts there are text.
        self.comparison_traceback = [*wrong, *map(str, self.comparison_traceback)]
        return same and not wrong


def _as_stored(output: Any, stored: dict[str, Any]) -> Any:
    """The output with the stored table; what else it has, or lacks, is left as it is."""
    table = {mime: stored[mime] for mime in (*SHOWN, MIME) if mime in stored}
    data = {mime: table.get(mime, value) for mime, value in output["data"].items()}
    return type(output)({**output, "data": data})
