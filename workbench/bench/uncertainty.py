"""Uncertainty against its promises: published tables, coverage, a long queue, the embedded model.

The tables are those of 26 models on MMBench, in the folder `$WORKBENCH_DATA`; the queue meets a
server that only waits; no store.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.bench.injector import Faults, Injector
from workbench.bench.table import Row, share_row
from workbench.engines.remote import RemoteEngine
from workbench.engines.vllm import VLLMEngine
from workbench.errors import InputError
from workbench.tasks.choices import Choices, open_choices
from workbench.tasks.data import local_file
from workbench.types import Engine, Item, Metric
from workbench.uncertainty.calibration import Method, calibration_report, rescaled
from workbench.uncertainty.choices import LETTERS
from workbench.uncertainty.conformal import conformal_report, conformal_splits, split_summary
from workbench.uncertainty.elicit import elicit
from workbench.uncertainty.prompts import PROMPTS, option_prompts
from workbench.uncertainty.report import arrays
from workbench.uncertainty.selective import from_options, selective_report

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["NAMES", "asked", "measure"]

LOGITS, TABLE = "uncertainty/mmbench_logits.npz", "uncertainty/mmbench_published.csv"
CONFORMAL: Mapping[str, str] = {
    "acc": "acc", "coverage": "coverage", "set_sizes": "set_size", "uacc": "uacc",
    "E_ratio": "e_rate", "F_ratio": "f_rate",
}  # fmt: skip
"""Columns of the published table, and what a `ConformalReport` calls them."""
SETS: Mapping[str, str] = {"coverage_all": "coverage", "set_sizes": "set_size", "uacc": "uacc"}
"""The same of each score's own sets; there the columns end in `_LAC` and `_APS`."""

CONCURRENCY = 128
EXAMPLES = 2
"""Demonstrations: without any there would be one prompt only."""

Say = Callable[[str], None]


def measure(parts: Sequence[str], say: Say) -> list[Row]:
    """Run these parts (none: all), in the order of `NAMES`.

    Raises:
        InputError: there is no such part.
    """
    if unknown := sorted({*parts} - {*NAMES}):
        raise InputError(f"part={unknown[0]!r}: give some of {', '.join(NAMES)}")
    rows: list[Row] = []
    for name in (name for name in NAMES if name in parts or not parts):
        say(f"{name} …")
        rows += PARTS[name](say)
    return rows


def _absent(say: Say) -> bool:
    """Whether the published tables are not here; says so."""
    try:
        local_file(LOGITS), local_file(TABLE)
    except InputError as error:
        say(f"left out: {error}")
        return True
    return False


def _models() -> tuple[dict[str, NDArray[np.float32]], NDArray[Any]]:
    """Logits of each model by its name, and the answers to the questions."""
    with np.load(local_file(LOGITS)) as data:
        logits = data["logits"].astype(np.float32)
        return dict(zip(map(str, data["models"]), logits, strict=True)), data["answer"]


def _published(say: Say) -> list[Row]:
    """Each number of the published table, computed again."""
    if _absent(say):
        return []
    import pandas as pd

    start = time.perf_counter()
    table = pd.read_csv(local_file(TABLE), index_col="model")
    logits, answers = _models()
    sets = pd.DataFrame({name: _sets(told, answers) for name, told in logits.items()}).T
    errors = pd.DataFrame({name: _errors(told, answers) for name, told in logits.items()}).T
    seconds = time.perf_counter() - start
    what = f"published table of {len(logits)} models"
    return [
        _unlike(f"{what}: conformal numbers", sets, table, 1e-9, say),
        _unlike(f"{what}: calibration errors", errors, table, 2e-6, say),
        Row(f"{what}: from the logits to all of these", seconds, " s", "< 5 s", seconds < 5),
    ]


def _sets(logits: NDArray[Any], answers: NDArray[Any]) -> dict[str, float]:
    report = conformal_report(logits, answers)
    return {column: getattr(report, name) for column, name in CONFORMAL.items()} | {
        f"{column}_{one.score.upper()}": getattr(one, name)
        for one in report.scores
        for column, name in SETS.items()
    }


def _errors(logits: NDArray[Any], answers: NDArray[Any]) -> dict[str, float]:
    report = calibration_report(logits, answers)
    return {"ece": report.ece, "mce": report.mce}


def _unlike(what: str, ours: Any, table: Any, most: float, say: Say) -> Row:
    apart = (ours - table.loc[ours.index, ours.columns]).abs().to_numpy()
    say(f"{what}: at most {np.nanmax(apart):.1g} apart")
    unlike = int((~(apart <= most)).sum())  # a NaN is unlike everything
    what = f"{what} unlike the published ones by more than {most:g}, of {apart.size}"
    return Row(what, unlike, "", "0", unlike == 0)


def _coverage(say: Say, models: int | None = None, splits: int = 200) -> list[Row]:
    """Whether sets hold the right letter as often as asked for, over random halves."""
    if _absent(say):
        return []
    import pandas as pd

    logits, answers = _models()
    found = [
        split_summary(conformal_splits(told, answers, splits=splits)).set_index(["score", "measure"])
        for told in islice(logits.values(), models)
    ]
    promised = [("lac", "coverage"), ("aps", "covered_before")]
    means = pd.concat([one.loc[promised] for one in found])
    outside = int((~((means["mean"] - 0.9).abs() <= 3 * means["sem"])).sum())
    low, high = means["mean"].min(), means["mean"].max()
    filled = [one.loc[("aps", "coverage"), "mean"] for one in found]
    what = f"coverage over {splits} splits, exact rule, {len(found)} models"
    return [
        Row(f"{what}, LAC and APS: means outside 0.9 ± 3 standard errors (lowest and highest mean)",
            outside, "", "0", outside == 0, low, high, len(means), "means"),
        Row("… APS once empty sets have got the likeliest letter: mean of the models",
            float(np.mean(filled)), "", "reported", True, min(filled), max(filled), len(filled),
            "models"),
    ]  # fmt: skip


# In a process of its own, so that its work and the server's are not done by one interpreter.
CHILD = """
import json, sys
from workbench.bench.uncertainty import asked
print(json.dumps(asked(sys.argv[1], int(sys.argv[2]))))
"""


def asked(url: str, count: int) -> dict[str, float]:
    """Ask a server for the options of made-up items in all prompts, from the call to its table.

    Returns:
        `lost` and `wrong` questions (no answer; another letter on top than the server told),
        `seconds`, and `cpu`, those in which this process was at work.
    """
    made = [_item(number) for number in range(count + EXAMPLES)]
    task = Choices("made up", "qa", made[EXAMPLES:], made[:EXAMPLES])
    options = {"base_url": url, "max_concurrency": CONCURRENCY}
    with RemoteEngine(None, None, "benchmark", options) as engine:
        elicit([Choices("warm-up", "qa", made[:EXAMPLES])], [engine], ["base"])
        start, busy = time.perf_counter(), time.process_time()
        rows = elicit([task], [engine]).rows
        seconds, cpu = time.perf_counter() - start, time.process_time() - busy
    done = rows[rows["error"].isna()].set_index(["prompt", "id"])
    top = done[list(LETTERS)].idxmax(axis=1)
    items, wrong = task.items(), 0
    for prompt in PROMPTS:
        texts = option_prompts(items, prompt, demonstrations=task.demonstrations)
        right = {(prompt, item.id): _letter(text) for item, text in zip(items, texts, strict=True)}
        wrong += sum(right[key] != letter for key, letter in top.items() if key in right)
    lost = len(PROMPTS) * count - int((~done.index.duplicated()).sum())
    return {"lost": lost, "wrong": wrong, "seconds": seconds, "cpu": cpu}


def _item(number: int) -> Item:
    texts = tuple(f"{number + step} points" for step in range(len(LETTERS)))
    fields = {"question": f"What follows case {number}?", "options": texts, "kind": "qa"}
    return Item(id=str(number), fields=fields, answer=LETTERS[number % len(LETTERS)])


def _letter(prompt: str) -> str:
    """What the server holds for right: it hangs on every character of the prompt."""
    return LETTERS[zlib.crc32(prompt.encode()) % len(LETTERS)]


def _tops(prompt: str) -> dict[str, float]:
    return {f" {letter}": -2.3 for letter in LETTERS} | {f" {_letter(prompt)}": -0.7}


def _queue(say: Say, count: int = 5000, latency: float = 0.1) -> list[Row]:
    """Questions in line at a server that takes one prompt a request, and at one that takes more.

    The second gets as much at once in few requests, for which there is no such ideal.
    """
    alone, told = _waited(Faults(multi=False), count, latency)
    say(told)
    together, told = _waited(Faults(), count, latency)
    say(told)
    asked_for = f"{len(PROMPTS) * count:,} questions ({count:,} items × {len(PROMPTS)} prompts)"
    ratio, ideal = alone["seconds"] / alone["ideal"], alone["ideal"]
    rows = [
        Row(f"{asked_for} to a server of one prompt a request: lost", alone["lost"], "", "0",
            alone["lost"] == 0),
        Row("… another letter on top than the server told", alone["wrong"], "", "0",
            alone["wrong"] == 0),
        Row(f"… time over the ideal of {ideal:.1f} s = {latency:g} s × {alone['requests']:,.0f} "
            f"requests ÷ {CONCURRENCY} at once (the client's own work: {alone['cpu']:.1f} s)",
            ratio, " ×", "≤ 1.3 ×", ratio <= 1.3),
    ]  # fmt: skip
    bad = together["lost"] + together["wrong"]
    requests = f"{together['requests']:,.0f} requests"
    return [
        *rows,
        Row("the same to a server of several prompts a request: lost or wrong", bad, "", "0",
            bad == 0),
        Row(f"… time, in {requests}", together["seconds"], " s", "reported", True),
    ]  # fmt: skip


def _waited(faults: Faults, count: int, latency: float) -> tuple[dict[str, float], str]:
    """What `asked` found at a server with these faults, the ideal seconds, and both as text."""
    command = [sys.executable, "-c", CHILD]
    environment = os.environ | {"WORKBENCH_PROGRESS": "off"}
    with Injector(faults, latency=latency, vllm=False, tops=_tops) as server:
        busy = time.process_time()
        command += [server.url, str(count)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        busy = time.process_time() - busy
    found = json.loads(done.stdout) | {
        "requests": server.requests, "ideal": latency * server.requests / CONCURRENCY,
    }  # fmt: skip
    told = (
        f"{server.requests:,} requests, {server.peak} at once at most: {found['seconds']:.1f} s; "
        f"CPU time of the client {found['cpu']:.1f} s, of the server {busy:.1f} s"
    )
    return found, told


def _options(say: Say) -> list[Row]:
    with VLLMEngine(None, None, "benchmark", {}) as engine:
        return _embedded(engine, say)


def _embedded(engine: Engine, say: Say, count: int = 2000) -> list[Row]:
    """What the embedded model's own probabilities are worth, without any example."""
    report = elicit([open_choices("options")], [engine], ["base"], count=count)
    logits, answers, done = arrays(report.rows)
    right = logits.argmax(axis=1) == answers
    say(f"{len(done)} of {count} questions answered, {right.mean():.1%} right")
    accuracy = replace(
        report.summary[0],
        name=f"embedded model, {count:,} questions of six options, no examples: accuracy",
    )
    return [
        share_row(accuracy),
        *_covered(logits, answers),
        *_rescaled(logits, answers),
        *_selected(logits, right, done["length"].to_numpy()),
    ]


def _covered(logits: NDArray[Any], answers: NDArray[Any]) -> list[Row]:
    report = conformal_report(logits, answers, rule="exact")
    shares = {metric.name: metric for metric in report.metrics()}
    rows = []
    for one in report.scores:
        score = one.score.upper()
        what = f"… coverage of {score} sets at 90 %, exact rule ({one.set_size:.2f} letters a set)"
        rows.append(share_row(replace(shares[f"coverage {score}"], name=what)))
    return rows


def _rescaled(logits: NDArray[Any], answers: NDArray[Any]) -> list[Row]:
    """Calibration errors of one half, as they are and with what the other half taught."""
    methods: tuple[Method, ...] = ("temperature", "isotonic")
    found = [rescaled(logits, answers, method=method) for method in methods]
    rows = [_reported("… ECE of the test half", found[0].before.metrics()[0])]
    for one in found:
        how = one.method if one.temperature is None else f"{one.method} {one.temperature:.2f}"
        less = one.difference
        rows.append(_reported(f"… ECE after {how}", one.after.metrics()[0]))
        rows.append(
            replace(
                _reported("… after minus before", less),
                bound="< 0, interval too", holds=less.value < 0 and less.high < 0,
            )
        )  # fmt: skip
    return rows


def _reported(what: str, metric: Metric) -> Row:
    low, high = metric.low, metric.high
    return Row(what, metric.value, "", "reported", True, low, high, metric.n, "items")


def _selected(logits: NDArray[Any], right: NDArray[Any], lengths: NDArray[Any]) -> list[Row]:
    """How well confidence tells right answers from wrong, beside what knows nothing."""
    signals = {"confidence": from_options(logits)["confidence"]}
    table = selective_report(signals, right, lengths=lengths)
    rows = [
        Row(f"… AUROC of {one['signal']}", one["auroc"], "", "reported", True, one["auroc_low"],
            one["auroc_high"], len(right), "items")
        for one in table.to_dict("records")
    ]  # fmt: skip
    half = 100 * float(table["accuracy_50"].iloc[0])
    what = f"… accuracy of the surest half (of all: {right.mean():.1%})"
    return [*rows, Row(what, half, " %", "reported", True)]


PARTS: Mapping[str, Callable[[Say], list[Row]]] = {
    "published": _published, "coverage": _coverage, "queue": _queue, "options": _options,
}  # fmt: skip
NAMES = tuple(PARTS)
