"""Shared by all benchmarks: rows with their targets, parts, clocks, and processes to kill."""

from __future__ import annotations

import inspect
import json
import operator
import os
import re
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench import machine, values
from workbench.cli.output import say
from workbench.engines.remote import RemoteEngine
from workbench.engines.vllm import VLLMEngine
from workbench.errors import EngineError
from workbench.files import write_whole
from workbench.runs import commit
from workbench.store import Store
from workbench.types import Metric

RESULTS = Path(__file__).parent / "results"
QUIET = os.environ | {"WORKBENCH_PROGRESS": "off"}
"""The environment of a child whose progress is not shown."""

Parts = Annotated[
    list[str] | None,
    typer.Option("--part", help="Only this part; can be repeated (default: all)."),
]
Repeats = Annotated[int, typer.Option(min=1, help="Runs of each speed.")]
Peers = Annotated[
    Path | None, typer.Option(help="An environment with lm-evaluation-harness: only that.")
]

COMPARE: dict[str, Callable[[float, float], bool]] = {
    "": operator.eq,
    "<": operator.lt,
    "≤": operator.le,
    ">": operator.gt,
    "≥": operator.ge,
    "within": lambda value, most: abs(value) <= most,
}


@dataclass(frozen=True, slots=True)
class Measurement:
    """A row: what was measured, its spread, and its target.

    `value` is the median if there were several runs; `low` and `high` are their range. If `of`
    is "items", they are a 95 % interval over `runs` items.
    """

    what: str
    value: float
    unit: str
    bound: str
    holds: bool
    low: float | None = None
    high: float | None = None
    runs: int = 1
    of: str = "runs"

    @property
    def measured(self) -> str:
        """The value with its range, as text."""
        digits = ".0e" if 0 < self.value < 1e-3 else ".3g" if self.value < 100 else ",.0f"
        if self.unit in {" %", " points"}:
            digits = ".1f"
        text = f"{self.value:{digits}}{self.unit}"
        if self.low is not None and self.high is not None:
            text += f" ({self.low:{digits}} to {self.high:{digits}}, {self.runs:,} {self.of})"
        return text


def judged(
    what: str,
    value: float,
    unit: str = "",
    bound: str = "reported",
    *,
    also: bool = True,
    **spread: Any,
) -> Measurement:
    """A value against its target.

    Args:
        what: what was measured.
        value: the number.
        unit: of the number and of the target, with its space.
        bound: a target that decides, such as "≤ 5", "≥ 5 and ≤ 15", "within 2" or "0" (exactly),
            optionally with a remark after a comma; or "reported".
        also: a further condition.
        **spread: `low`, `high`, `runs`, `of`.
    """
    if bound == "reported":
        return Measurement(what, value, unit, bound, also, **spread)
    bars, *remark = bound.split(", ")
    holds, shown = also, []
    for bar in bars.split(" and "):
        sign, _, limit = bar.rpartition(" ")
        holds &= COMPARE[sign](value, float(re.sub(",", "", limit).replace("−", "-")))
        shown.append(f"{bar}{unit}")
    text = ", ".join([" and ".join(shown), *remark])
    return Measurement(what, value, unit, text, bool(holds), **spread)


def median(
    what: str, measured: Sequence[float], unit: str = "", bound: str = "reported"
) -> Measurement:
    """The median of several runs against its target, with their range."""
    middle, low, high = statistics.median(measured), min(measured), max(measured)
    return judged(what, middle, unit, bound, low=low, high=high, runs=len(measured))


def ratio(what: str, ratios: Sequence[float], least: float = 0) -> Measurement:
    """The median of ratios, which must reach `least` if that is not 0."""
    return median(what, ratios, " ×", f"≥ {least:g}" if least else "reported")


def ratios(values: Iterable[float], others: Iterable[float]) -> list[float]:
    """The ratio of each pair."""
    return [float(a) / float(b) for a, b in zip(values, others, strict=True)]


def interval(
    metric: Metric,
    unit: str = "",
    bound: str = "reported",
    *,
    what: str = "",
    scale: float = 1,
    also: bool = True,
) -> Measurement:
    """A metric with its interval over items, multiplied by `scale`."""
    value, low, high = (scale * x for x in (metric.value, metric.low, metric.high))
    spread = {"low": low, "high": high, "runs": metric.n, "of": "items"}
    return judged(what or metric.name, value, unit, bound, also=also, **spread)


def share(metric: Metric, what: str = "", *, least: float = 0, most: float = 1) -> Measurement:
    """A share in per cent, with bounds; it holds only if no item failed."""
    bounds = [f"≥ {100 * least:g}"] * (least > 0) + [f"≤ {100 * most:g}"] * (most < 1)
    bound, also = " and ".join(bounds) or "reported", metric.n_failed == 0
    return interval(metric, " %", bound, what=what, scale=100, also=also)


def gain(metric: Metric, least: float = 0) -> Measurement:
    """A difference of shares in points, which must reach `least`, with an interval above 0."""
    bound = f"≥ {100 * least:g}" if least else "> 0, interval too"
    return interval(metric, " points", bound, scale=100, also=metric.low > 0)


def as_text(rows: Sequence[Measurement]) -> str:
    """A Markdown table, readable in a terminal and in a README."""
    cells = [("what", "measured", "must be", "")]
    cells += [(r.what, r.measured, r.bound, "holds" if r.holds else "FAILS") for r in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(4)]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def as_json(rows: Sequence[Measurement], arguments: Sequence[str]) -> str:
    """A run as JSON: its command, date, machine, versions and rows, from which tables are made."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in arguments]
    about = machine.describe()
    run = {
        "command": " ".join(["python -m benchmarks", *words]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": about["devices"],
        "versions": about["versions"] | {"commit": commit()},
        "rows": [asdict(row) for row in rows],
    }
    return json.dumps(run, indent=1, ensure_ascii=False)


def publish(
    rows: Sequence[Measurement], file: Path, arguments: Sequence[str], *, json_too: bool
) -> None:
    """Write a run's rows and print them; exit with 1 if one of them does not hold."""
    text = as_json(rows, arguments)
    write_whole(file, text + "\n")
    typer.echo(text if json_too else as_text(rows))
    if not all(row.holds for row in rows):
        raise typer.Exit(1)


def run_parts(
    parts: Mapping[str, Callable[..., Iterable[Measurement]]],
    chosen: Sequence[str] | None,
    open_engine: Callable[[], AbstractContextManager[object]] = nullcontext,
    **options: object,
) -> list[Measurement]:
    """Run these parts (none: all), in order.

    Args:
        parts: functions by name; each is called with the arguments it has parameters for.
        chosen: names of parts.
        open_engine: opens the `engine` that parts share, at its first use.
        **options: further arguments for the parts.

    Raises:
        InputError: an unknown part; the message names the nearest.
    """
    for name in chosen or ():
        values.known("part", name, parts)
    rows: list[Measurement] = []
    with ExitStack() as stack:
        for name in (name for name in parts if name in (chosen or parts)):
            say(f"{name} …")
            wanted = inspect.signature(parts[name]).parameters
            if "engine" in wanted and "engine" not in options:
                options["engine"] = stack.enter_context(open_engine())
            given = {option: value for option, value in options.items() if option in wanted}
            rows += parts[name](**given)
    return rows


def vllm_engine(store: Path | None = None, **options: Any) -> VLLMEngine:
    """The embedded model in vLLM in this process, without a store or with one at a path."""
    return VLLMEngine(None, Store(store) if store else None, "benchmark", options)


def remote_engine(
    url: str | Sequence[str], store: Path | None = None, **options: Any
) -> RemoteEngine:
    """The only model of servers, without a store or with one at a path."""
    opened = Store(store) if store else None
    return RemoteEngine(None, opened, "benchmark", {"base_url": url, **options})


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def differing(values: Iterable[object], others: Iterable[object]) -> int:
    """How many pairs differ."""
    return sum(a != b for a, b in zip(values, others, strict=True))


def python(code: str, *arguments: object) -> list[str]:
    """The command of a separate process that runs this code."""
    return [sys.executable, "-c", code, *map(str, arguments)]


def output_of(code: str, *arguments: object) -> Any:
    """What this code prints in a separate process, as JSON.

    So its work and memory are not those of a server in this process.
    """
    command = python(code, *arguments)
    done = subprocess.run(command, env=QUIET, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def kill_at(place: int, progress: Callable[[], int], code: str, *arguments: object) -> int:
    """Run this code in a separate process, and SIGKILL it once `progress` reaches `place`.

    Returns:
        The progress at the end.

    Raises:
        EngineError: the process ended by itself.
    """
    with subprocess.Popen(python(code, *arguments), env=QUIET) as child:
        try:
            while progress() < place:
                if child.poll() is not None:
                    raise EngineError(f"the run to be killed ended by itself ({child.returncode})")
                time.sleep(0.002)
        finally:
            child.kill()
    return progress()


def stored(store: Path) -> int:
    """How many responses a store holds; 0 if it does not exist yet."""
    try:
        with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as base:
            return int(base.execute("SELECT COUNT(*) FROM responses").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def reference_logprobs(folder: Path | str, texts: Sequence[str], labels: Sequence[str]) -> Any:
    """Label log-probabilities [n_texts, n_labels] by transformers in float32, one text at a time.

    A plain forward pass over each text and label, as the reference.
    """
    import numpy as np
    import torch

    tokenizer, model = transformers_model(folder)
    logprobs = np.empty((len(texts), len(labels)))
    ends = [tokenizer(label, add_special_tokens=False).input_ids for label in labels]
    for i, text in enumerate(texts):
        start = tokenizer(text).input_ids
        for j, end in enumerate(ends):
            with torch.inference_mode():
                logits = model(torch.tensor([start + end])).logits[0].double()
            at = logits.log_softmax(-1)[len(start) - 1 : -1]
            logprobs[i, j] = float(at.gather(1, torch.tensor(end)[:, None]).sum())
    return logprobs


def transformers_model(folder: Path | str) -> tuple[Any, Any]:
    """The tokenizer and the model in float32, as transformers load them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    )
    return tokenizer, model
