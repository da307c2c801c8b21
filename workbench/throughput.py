"""How fast engines are: the same prompts through each, in turn, on one machine in one run.

A `Runner` runs prompts, a `Load` is the amount of work. Every repeat has different prompts, and
prefix caches are emptied before each run, so that no answer comes from a cache.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from workbench import values
from workbench.errors import EngineError, InputError
from workbench.lazy import pd
from workbench.load import Load, Runner, filler, local
from workbench.machine import ResourceMonitor
from workbench.progress import one_bar
from workbench.runs import commit
from workbench.types import Engine, Metric, Report, Sampling, Usage

CALLS = 4  # calls per measurement: the speed of a batch does not depend on later ones


class Throughput:
    """A measurement: `run()` performs it, and resumes it after an interrupt.

    `rows` has one row for each finished runner, load and repeat: `runner`, `batch`, `label`;
    the load's fields; `repeat`, `count` (prompts that were run: at most `CALLS` batches),
    `seconds`, `requests_per_s`, `output_tokens_per_s`,
    `total_tokens_per_s`, `cached` (share of prompt tokens), `cpu` (share of all cores), `gpu`
    (share of the time, None without one), `peak_memory_gib` (of the whole process),
    `added_memory_gib` (by this run), `error`.

    Args:
        runners: the others are compared with the first.
        loads: the first is used for the headline numbers.
        repeats: runs of each runner and load.
        seed: selects the prompts.
        tokenizer: makes the prompts; by default that of the first runner's engine.

    Raises:
        InputError: nothing to run, two runners with the same label, or a load that exceeds an
            engine's context length.
    """

    def __init__(
        self, runners: Sequence[Runner], loads: Sequence[Load], *, repeats: int = 3,
        seed: int | str = 0, tokenizer: Any = None,
    ) -> None:  # fmt: skip
        if not runners or not loads:
            raise InputError("pass at least one runner and one load")
        labels = [runner.label for runner in runners]
        if len(set(labels)) < len(labels):
            raise InputError(f"two runners have the same label: {labels}")
        self._runners, self._loads = list(runners), list(dict.fromkeys(loads))
        for load in self._loads:
            for runner in runners:
                _check_fit(runner, load)
        self._repeats, self._seed = values.whole("repeats", repeats, 1), seed
        self._tokenizer = tokenizer or local(runners[0].engine).tokenizer
        self._done: dict[tuple[int, int, int], dict[str, Any]] = {}
        self._warm = False

    @property
    def rows(self) -> pd.DataFrame:
        """The results so far."""
        return pd.DataFrame([self._done[key] for key in sorted(self._done)])

    def run(self) -> Report:
        """Measure what is missing; Ctrl-C keeps finished measurements."""
        plan = [key for key in self._plan() if key not in self._done]
        with one_bar(len(plan), "throughput", "run") as bar:
            for runner in () if self._warm else self._runners:
                few = replace(self._loads[0], requests=max(8, runner.batch), output_tokens=4)
                self._measure(runner, few, -1)
            self._warm = True
            for key in plan:
                repeat, load, which = key
                runner = self._runners[which]
                bar.set_postfix_str(runner.label)
                self._done[key] = self._measure(runner, self._loads[load], repeat)
                bar.update()
        return self.report()

    def report(self) -> Report:
        """The results so far, as a report.

        Raises:
            InputError: there are none.
        """
        rows = self.rows
        if rows.empty:
            raise InputError("nothing has been measured yet: call run()")
        first = pd.DataFrame([self._done[key] for key in sorted(self._done) if key[1] == 0])
        rates = [
            _median(str(label), part["output_tokens_per_s"], int(part["error"].notna().sum()))
            for label, part in first.groupby("label", sort=False)
        ]
        provenance = {
            "engines": [asdict(runner.engine.info) for runner in self._runners],
            "loads": [asdict(load) for load in self._loads],
            "repeats": self._repeats,
            "seed": self._seed,
            "cores": os.cpu_count(),
            "complete": len(self._done) == len(self._plan()),
            "commit": commit(),
        }
        return Report((*rates, *speedups(first)), rows, _usage(rows), provenance)

    def _plan(self) -> list[tuple[int, int, int]]:
        """(repeat, load, runner), in an order where no runner is always the first or the last."""
        many = len(self._runners)
        return [
            (repeat, load, (runner + repeat) % many)
            for repeat in range(self._repeats)
            for load in range(len(self._loads))
            for runner in range(many)
        ]

    def _measure(self, runner: Runner, load: Load, repeat: int) -> dict[str, Any]:
        seed = f"{self._seed}-{repeat}"
        count = load.requests
        if runner.batch:  # whole batches only
            count = min(count - count % runner.batch, CALLS * runner.batch)
        prompts = filler(self._tokenizer, count, load.prompt_tokens, shared=load.shared, seed=seed)
        sampling = Sampling(max_tokens=load.output_tokens, ignore_eos=True)
        error, prompt, output, cached = None, 0, 0, 0
        with ResourceMonitor() as monitor:
            try:
                prompt, output, cached = runner.run(prompts, sampling)
            except EngineError as failed:
                error = str(failed)
        reading = monitor.reading
        if error is None and output != count * load.output_tokens:
            error = f"{output} answer tokens, not {count} × {load.output_tokens}"
        rate = float("nan") if error else 1 / reading.seconds
        return {
            "runner": runner.name,
            "batch": runner.batch,
            "label": runner.label,
            **asdict(load),
            "repeat": repeat,
            "count": count,
            "seconds": reading.seconds,
            "requests_per_s": count * rate,
            "output_tokens_per_s": output * rate,
            "total_tokens_per_s": (prompt + output) * rate,
            "cached": cached / prompt if prompt else 0.0,
            "cpu": reading.cpu,
            "gpu": reading.gpu,
            "peak_memory_gib": reading.peak_memory_bytes / 2**30,
            "added_memory_gib": reading.added_memory_bytes / 2**30,
            "error": error,
        }


def by_replicas(
    opened: Callable[[int], Engine],
    counts: Sequence[int],
    load: Load,
    tokenizer: Any,
    *,
    repeats: int = 3,
    seed: int = 0,
) -> pd.DataFrame:
    """Speed against the number of replicas, the same load for each number.

    Args:
        opened: opens an engine over so many replicas, such as `load.open_replicas`.
        counts: numbers of replicas, measured in this order.
        tokenizer: makes the prompts, as in `Throughput`.

    Returns:
        The rows of `Throughput`, with a column `replicas`.
    """
    parts = []
    for count in counts:
        with opened(count) as engine:
            runner = Runner(f"{count} replicas", engine)
            own = Throughput(
                [runner], [load], repeats=repeats, seed=f"{seed}-{count}", tokenizer=tokenizer
            )
            parts.append(own.run().rows.assign(replicas=count))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """A row per runner and load: medians over the repeats, and the range of the speed.

    Columns: `label`, `runner`, `batch`, the load's fields, `n`, `n_failed`, `output_tokens_per_s`
    with `low` and `high`, `requests_per_s`, `cached`, `cpu`, `gpu`, and the highest
    `peak_memory_gib` and `added_memory_gib`.
    """
    keys = ["label", "runner", "batch", *asdict(Load())]
    found = []
    for group, part in rows.groupby(keys, sort=False):
        speed = part["output_tokens_per_s"]
        middle = part[["requests_per_s", "cached", "cpu", "gpu"]].astype(float).median()
        found.append(
            dict(zip(keys, group, strict=True))
            | {"n": speed.count(), "n_failed": part["error"].notna().sum()}
            | {"output_tokens_per_s": speed.median(), "low": speed.min(), "high": speed.max()}
            | middle.to_dict()
            | part[["peak_memory_gib", "added_memory_gib"]].max().to_dict()
        )
    return pd.DataFrame(found)


def speedups(rows: pd.DataFrame) -> list[Metric]:
    """How many times faster the first runner is than each other one, at the same load.

    Each repeat gives a ratio of requests per second. A metric is their median with their range;
    `n` is the number of repeats. Runners without a finished repeat are left out.

    Raises:
        InputError: the rows have several loads.
    """
    if len(rows[[*asdict(Load())]].drop_duplicates()) > 1:
        raise InputError("rows of several loads: pass those of one, as a ratio needs the same work")
    done = rows[rows["error"].isna()]
    if done.empty:
        return []
    table = done.pivot_table(index="repeat", columns="label", values="requests_per_s", sort=False)
    first = rows["label"].iloc[0]
    if first not in table:
        return []
    found = []
    for label in table.columns:
        ratios = (table[first] / table[label]).dropna()
        if label != first and len(ratios):
            found.append(_median(f"{first} over {label}", ratios))
    return found


def _median(name: str, values: pd.Series[float], failed: int = 0) -> Metric:
    if not (known := [float(value) for value in values.dropna()]):
        return Metric(name, float("nan"), float("nan"), float("nan"), 0, failed)
    return Metric(name, statistics.median(known), min(known), max(known), len(known), failed)


def _check_fit(runner: Runner, load: Load) -> None:
    if runner.batch > load.requests:
        raise InputError(
            f"{runner.label}: {load.requests} requests are not a whole batch; increase them"
        )
    context = runner.engine.info.context_length
    need = load.prompt_tokens + load.output_tokens
    if 0 < context < need:  # a server may not report it
        raise InputError(
            f"{runner.name} holds {context} tokens, {load} needs {need}: make it shorter or raise "
            "max_model_len"
        )


def _usage(rows: pd.DataFrame) -> Usage:
    done = rows[rows["error"].isna()]
    prompts = done["count"] * done["prompt_tokens"]
    return Usage(
        requests=int(rows["count"].sum()),
        failed=int(rows["count"].sum() - done["count"].sum()),
        prompt_tokens=int(prompts.sum()),
        completion_tokens=int((done["count"] * done["output_tokens"]).sum()),
        cached_tokens=round(float((done["cached"] * prompts).sum())),
        seconds=float(rows["seconds"].sum()),
        peak_memory_bytes=round(float(rows["peak_memory_gib"].max()) * 2**30),
    )
