"""Uncertainty against its targets: published tables, coverage, a long queue, the embedded model.

The tables are those of 26 models on MMBench, in the folder `$WORKBENCH_DATA`; the queue is for a
server that only waits; without a store.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice, product
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness import (
    Measurement,
    Parts,
    interval,
    judged,
    output_of,
    remote_engine,
    run_parts,
    share,
    vllm_engine,
)
from benchmarks.injector import Faults, Injector
from workbench.cli.output import say
from workbench.errors import InputError
from workbench.tasks.multiple_choice import MultipleChoice, open_choices
from workbench.tasks.options import LETTERS
from workbench.tasks.published import published_file
from workbench.types import Engine, Item, Metric
from workbench.uncertainty.calibration import Method, calibration_report, rescaled
from workbench.uncertainty.conformal import conformal_report, conformal_splits, split_summary
from workbench.uncertainty.elicitation import PROMPTS, elicit, option_prompts
from workbench.uncertainty.selective_prediction import from_options, selective_report
from workbench.uncertainty.tables import arrays

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

LOGITS, TABLE = "uncertainty/mmbench_logits.npz", "uncertainty/mmbench_published.csv"
CONCURRENCY = (64, 128)
"""Concurrent requests; the second is the remote engine's default."""
EXAMPLES = 2
"""Demonstrations: without any there would be only one prompt."""


def measure(part: Parts = None) -> list[Measurement]:
    """Published tables, coverage over splits, a long queue, the embedded model's options."""
    return run_parts(PARTS, part, vllm_engine)


def _tables() -> tuple[dict[str, NDArray[Any]], NDArray[Any], pd.DataFrame] | None:
    """Each model's logits, the answers, the published table; None, and a message, if missing."""
    import pandas as pd

    try:
        logits, table = published_file(LOGITS), published_file(TABLE)
    except InputError as error:
        say(f"left out: {error}")
        return None
    with np.load(logits) as data:
        names, logits_of, answers = map(str, data["models"]), data["logits"], data["answer"]
    models = dict(zip(names, logits_of.astype(np.float32), strict=True))
    return models, answers, pd.read_csv(table, index_col="model")


def _published() -> list[Measurement]:
    """Each number of the published table, computed again."""
    if (tables := _tables()) is None:
        return []
    import pandas as pd

    models, answers, table = tables
    start = time.perf_counter()
    ours = pd.DataFrame([_numbers(logits, answers) for logits in models.values()], [*models])
    taken = time.perf_counter() - start
    what, errors = f"published table of {len(models)} models", ["ece", "mce"]
    return [
        _unlike(f"{what}: conformal numbers", ours.drop(columns=errors), table, 1e-9),
        _unlike(f"{what}: calibration errors", ours[errors], table, 2e-6),
        judged(f"{what}: all of these from the logits", taken, " s", "< 5"),
    ]


def _numbers(logits: NDArray[Any], answers: NDArray[Any]) -> dict[str, float]:
    """A model's row, in the columns of the published table."""
    sets, errors = conformal_report(logits, answers), calibration_report(logits, answers)
    row = {
        "acc": sets.acc, "coverage": sets.coverage, "set_sizes": sets.set_size, "uacc": sets.uacc,
        "E_ratio": sets.e_rate, "F_ratio": sets.f_rate, "ece": errors.ece, "mce": errors.mce,
    }  # fmt: skip
    for one in sets.scores:
        score = one.score.upper()
        row |= {f"coverage_all_{score}": one.coverage, f"set_sizes_{score}": one.set_size,
                f"uacc_{score}": one.uacc}  # fmt: skip
    return row


def _unlike(what: str, ours: pd.DataFrame, table: pd.DataFrame, most: float) -> Measurement:
    apart = (ours - table.loc[ours.index, ours.columns]).abs().to_numpy()
    say(f"{what}: at most {np.nanmax(apart):.1g} apart")
    unlike = int((~(apart <= most)).sum())  # NaN counts as different
    what = f"{what} unlike the published ones by more than {most:g}, of {apart.size}"
    return judged(what, unlike, bound="0")


def _coverage(models: int | None = None, splits: int = 200) -> list[Measurement]:
    """Whether sets contain the right letter with the required rate, over random splits."""
    if (tables := _tables()) is None:
        return []
    import pandas as pd

    chosen, answers = [*islice(tables[0].values(), models)], tables[1]
    each = [
        split_summary(conformal_splits(logits, answers, splits=splits, rule="exact"))
        for logits in chosen
    ]
    table = pd.concat(each)
    kind = table["score"] + " " + table["measure"]
    means = table[kind.isin(["lac coverage", "aps covered_before"])]
    outside = int((~((means["mean"] - 0.9).abs() <= 3 * means["sem"])).sum())
    what = f"coverage at 90 %, exact rule, mean of {splits} splits, {len(chosen)} models"
    what += ", LAC and APS: outside 0.9 ± 3 standard errors (lowest and highest mean)"
    filled = table[kind == "aps coverage"]["mean"]
    later = "… APS once empty sets have got the likeliest letter"
    return [
        judged(what, outside, bound="0", **_range(means["mean"], "means")),
        judged(later, float(filled.mean()), **_range(filled, "models")),
    ]


def _range(column: pd.Series[float], of: str) -> dict[str, Any]:
    return {"low": column.min(), "high": column.max(), "runs": len(column), "of": of}


# In a separate process, so that its work and the server's do not share one interpreter.
CHILD = """
import json, sys
from benchmarks.uncertainty import ask_made_up
print(json.dumps(ask_made_up(sys.argv[1], *map(int, sys.argv[2:]))))
"""


def ask_made_up(url: str, count: int, concurrency: int) -> dict[str, float]:
    """Ask a server for the options of synthetic items in all prompts, timed up to the table.

    Returns:
        `lost` and `wrong` questions (no answer; another top letter than the server's), `seconds`,
        and `cpu`, the CPU seconds of this process.
    """
    import pandas as pd

    items = [_item(number) for number in range(count + EXAMPLES)]
    task = MultipleChoice("made up", "qa", items[EXAMPLES:], items[:EXAMPLES])
    with remote_engine(url, max_concurrency=concurrency) as engine:
        elicit([MultipleChoice("warm-up", "qa", task.demonstrations)], [engine], ["base"])
        start, busy = time.perf_counter(), time.process_time()
        rows = elicit([task], [engine]).rows
        taken, cpu = time.perf_counter() - start, time.process_time() - busy
    done = rows[rows["error"].isna()].set_index(["prompt", "id"])
    tops = done[list(LETTERS)].idxmax(axis=1)
    right = pd.Series({
        (prompt, item.id): _letter(str(text))
        for prompt, item in product(PROMPTS, task.items())
        for text in option_prompts([item], prompt, demonstrations=task.demonstrations)
    })  # fmt: skip
    wrong = int((tops != right[tops.index]).sum())
    return {"lost": len(right) - len(tops), "wrong": wrong, "seconds": taken, "cpu": cpu}


def _item(number: int) -> Item:
    texts = tuple(f"{number + step} points" for step in range(len(LETTERS)))
    fields = {"question": f"What follows case {number}?", "options": texts, "kind": "qa"}
    return Item(id=str(number), fields=fields, answer=LETTERS[number % len(LETTERS)])


def _letter(prompt: str) -> str:
    """The server's right letter, which depends on every character of the prompt."""
    return LETTERS[zlib.crc32(prompt.encode()) % len(LETTERS)]


def _tops(prompt: str) -> dict[str, float]:
    return {f" {letter}": -2.3 for letter in LETTERS} | {f" {_letter(prompt)}": -0.7}


def _queue(count: int = 5000, latency: float = 0.1) -> list[Measurement]:
    """A long queue for a server that accepts several prompts per request, and one that does not.

    With the latter a client's own work per request matters most, so it is reported, and so is the
    result with more requests in flight than one client can keep up with.
    """
    less, most = CONCURRENCY
    ways = ((True, less), (False, less), (False, most))
    runs = [_waited(Faults(multi=multi), count, latency, at) for multi, at in ways]
    total = len(PROMPTS) * count
    many, single, default = (
        run["seconds"] * at / latency / total for run, (_, at) in zip(runs, ways, strict=True)
    )
    what = f"{total:,} questions ({count:,} items × {len(PROMPTS)} prompts), three times"
    one, ideal = "… one prompt per request", f"time over {latency:g} s × {total:,} ÷"
    several = f"… many prompts per request ({runs[0]['requests']:,.0f} requests)"
    cpu = 1000 * runs[1]["cpu"] / total
    return [
        judged(
            f"{what} to two servers, with many and with one prompt per request: lost",
            sum(run["lost"] for run in runs),
            bound="0",
        ),
        judged(
            "… top letter differs from the server's",
            sum(run["wrong"] for run in runs),
            bound="0",
        ),
        judged(f"{several}: {ideal} {less} at once", many, " ×", "≤ 1.3"),
        judged(f"{one}: the same", single, " ×", "≤ 1.3"),
        judged(f"{one}: client CPU, milliseconds per question", cpu, " ms"),
        judged(f"{one}, {most} at once (the default): {ideal} {most}", default, " ×"),
    ]


def _waited(faults: Faults, count: int, latency: float, concurrency: int) -> dict[str, float]:
    """The result of `ask_made_up` with a server with these faults, and its number of `requests`."""
    with Injector(faults, latency=latency, vllm=False, tops=_tops) as server:
        run: dict[str, float] = output_of(CHILD, server.url, count, concurrency)
    say(
        f"{server.requests:,} requests, {server.peak} at once at most: {run['seconds']:.1f} s, "
        f"the client at work for {run['cpu']:.1f} s"
    )
    return run | {"requests": server.requests}


def _embedded(engine: Engine, count: int = 2000) -> list[Measurement]:
    """The value of the embedded model's own probabilities, without examples."""
    report = elicit([open_choices("options")], [engine], ["base"], count=count)
    logits, answers, done = arrays(report.rows)
    right = logits.argmax(axis=1) == answers
    say(f"{len(done)} of {count} questions answered, {right.mean():.1%} right")
    what = f"embedded model, {count:,} questions of six options, no examples: accuracy"
    return [
        share(report.summary[0], what),
        *_covered(logits, answers),
        *_rescaled(logits, answers),
        *_selected(logits, right, done["length"].to_numpy()),
    ]


def _covered(logits: NDArray[Any], answers: NDArray[Any]) -> list[Measurement]:
    report = conformal_report(logits, answers, rule="exact")
    shares = {metric.name: metric for metric in report.metrics()}
    what = "… coverage of {} sets at 90 %, exact rule ({:.2f} letters per set)"
    named = {one.score.upper(): one.set_size for one in report.scores}
    return [
        share(shares[f"coverage {score}"], what.format(score, size))
        for score, size in named.items()
    ]


def _rescaled(logits: NDArray[Any], answers: NDArray[Any]) -> list[Measurement]:
    """Calibration errors of one half, before and after a scaling fitted on the other half."""
    methods: tuple[Method, ...] = ("temperature", "isotonic")
    halves = [rescaled(logits, answers, method=method) for method in methods]
    rows = [share(halves[0].before.metrics()[0], "… ECE of the test half")]
    for one in halves:
        how = one.method if one.temperature is None else f"{one.method} {one.temperature:.2f}"
        rows.append(share(one.after.metrics()[0], f"… ECE after {how}"))
        rows.append(interval(one.difference, " points", what="… after minus before", scale=100))
    # One temperature cannot lower the ECE of a model that is too sure at the top only.
    best = halves[-1].difference
    return [*rows[:-1], replace(rows[-1], bound="< 0, interval too", holds=best.high < 0)]


def _selected(
    logits: NDArray[Any], right: NDArray[Any], lengths: NDArray[Any]
) -> list[Measurement]:
    """How well confidence separates right answers from wrong ones, with the baselines."""
    signals = {"confidence": from_options(logits)["confidence"]}
    table = selective_report(signals, right, lengths=lengths)
    rows = []
    for one in table.to_dict("records"):
        value, low, high = (one[f"auroc{end}"] for end in ("", "_low", "_high"))
        rows.append(share(Metric(f"… AUROC of {one['signal']}", value, low, high, len(right))))
    half = 100 * float(table["accuracy_50"].iloc[0])
    what = f"… accuracy of the surest half (of all: {right.mean():.1%})"
    return [*rows, judged(what, half, " %")]


PARTS: Mapping[str, Callable[..., list[Measurement]]] = {
    "published": _published,
    "coverage": _coverage,
    "queue": _queue,
    "options": _embedded,
}
