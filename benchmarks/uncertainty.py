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
from itertools import islice, product
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.injector import Faults, Injector
from benchmarks.table import Row, share_row
from workbench.engines.remote import RemoteEngine
from workbench.engines.vllm import VLLMEngine
from workbench.errors import InputError
from workbench.tasks.multiple_choice import MultipleChoice, open_choices
from workbench.tasks.published import published_file
from workbench.types import Engine, Item, Metric
from workbench.uncertainty.calibration import Method, calibration_report, rescaled
from workbench.uncertainty.choices import LETTERS
from workbench.uncertainty.conformal import conformal_report, conformal_splits, split_summary
from workbench.uncertainty.elicit import elicit
from workbench.uncertainty.prompts import PROMPTS, option_prompts
from workbench.uncertainty.report import arrays
from workbench.uncertainty.selective import from_options, selective_report

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

LOGITS, TABLE = "uncertainty/mmbench_logits.npz", "uncertainty/mmbench_published.csv"
CONCURRENCY = (64, 128)
"""Requests at once; the second is the remote engine's default."""
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


def _tables(say: Say) -> tuple[dict[str, NDArray[Any]], NDArray[Any], pd.DataFrame] | None:
    """Each model's logits, the answers, the published table; None, and a word, if not here."""
    import pandas as pd

    try:
        logits, table = published_file(LOGITS), published_file(TABLE)
    except InputError as error:
        say(f"left out: {error}")
        return None
    with np.load(logits) as data:
        names, told, answers = map(str, data["models"]), data["logits"], data["answer"]
    models = dict(zip(names, told.astype(np.float32), strict=True))
    return models, answers, pd.read_csv(table, index_col="model")


def _published(say: Say) -> list[Row]:
    """Each number of the published table, computed again."""
    if (found := _tables(say)) is None:
        return []
    import pandas as pd

    models, answers, table = found
    start = time.perf_counter()
    ours = pd.DataFrame([_numbers(logits, answers) for logits in models.values()], [*models])
    seconds = time.perf_counter() - start
    what, errors = f"published table of {len(models)} models", ["ece", "mce"]
    return [
        _unlike(f"{what}: conformal numbers", ours.drop(columns=errors), table, 1e-9, say),
        _unlike(f"{what}: calibration errors", ours[errors], table, 2e-6, say),
        Row(f"{what}: all of these from the logits", seconds, " s", "< 5 s", seconds < 5),
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


def _unlike(what: str, ours: pd.DataFrame, table: pd.DataFrame, most: float, say: Say) -> Row:
    apart = (ours - table.loc[ours.index, ours.columns]).abs().to_numpy()
    say(f"{what}: at most {np.nanmax(apart):.1g} apart")
    unlike = int((~(apart <= most)).sum())  # a NaN is unlike everything
    what = f"{what} unlike the published ones by more than {most:g}, of {apart.size}"
    return Row(what, unlike, "", "0", unlike == 0)


def _coverage(say: Say, models: int | None = None, splits: int = 200) -> list[Row]:
    """Whether sets hold the right letter as often as asked for, over random halves."""
    if (found := _tables(say)) is None:
        return []
    import pandas as pd

    chosen, answers = [*islice(found[0].values(), models)], found[1]
    each = [
        split_summary(conformal_splits(told, answers, splits=splits, rule="exact"))
        for told in chosen
    ]
    table = pd.concat(each)
    kind = table["score"] + " " + table["measure"]
    means = table[kind.isin(["lac coverage", "aps covered_before"])]
    outside = int((~((means["mean"] - 0.9).abs() <= 3 * means["sem"])).sum())
    low, high = means["mean"].min(), means["mean"].max()
    filled = table[kind == "aps coverage"]["mean"]
    what = f"coverage at 90 %, exact rule, mean of {splits} splits, {len(chosen)} models"
    return [
        Row(f"{what}, LAC and APS: outside 0.9 ± 3 standard errors (lowest and highest mean)",
            outside, "", "0", outside == 0, low, high, len(means), "means"),
        Row("… APS once empty sets have got the likeliest letter", float(filled.mean()), "",
            "reported", True, filled.min(), filled.max(), len(filled), "models"),
    ]  # fmt: skip


# In a process of its own, so that its work and the server's are not done by one interpreter.
CHILD = """
import json, sys
from benchmarks.uncertainty import asked
print(json.dumps(asked(sys.argv[1], *map(int, sys.argv[2:]))))
"""


def asked(url: str, count: int, concurrency: int) -> dict[str, float]:
    """Ask a server for the options of made-up items in all prompts, from the call to its table.

    Returns:
        `lost` and `wrong` questions (no answer; another letter on top than the server told),
        `seconds`, and `cpu`, those in which this process was at work.
    """
    import pandas as pd

    made = [_item(number) for number in range(count + EXAMPLES)]
    task = MultipleChoice("made up", "qa", made[EXAMPLES:], made[:EXAMPLES])
    options = {"base_url": url, "max_concurrency": concurrency}
    with RemoteEngine(None, None, "benchmark", options) as engine:
        elicit([MultipleChoice("warm-up", "qa", task.demonstrations)], [engine], ["base"])
        start, busy = time.perf_counter(), time.process_time()
        rows = elicit([task], [engine]).rows
        seconds, cpu = time.perf_counter() - start, time.process_time() - busy
    told = rows[rows["error"].isna()].set_index(["prompt", "id"])[list(LETTERS)].idxmax(axis=1)
    right = pd.Series({
        (prompt, item.id): _letter(str(text))
        for prompt, item in product(PROMPTS, task.items())
        for text in option_prompts([item], prompt, demonstrations=task.demonstrations)
    })  # fmt: skip
    wrong = int((told != right[told.index]).sum())
    return {"lost": len(right) - len(told), "wrong": wrong, "seconds": seconds, "cpu": cpu}


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
    """Questions in line at a server that takes several prompts a request, and at one that does not.

    At the second a client's own work for each request counts most, so that is told beside, and
    what it comes to where more requests are in the air than one client can keep up with.
    """
    less, most = CONCURRENCY
    ways = ((True, less), (False, less), (False, most))
    found = [_waited(Faults(multi=multi), count, latency, at, say) for multi, at in ways]
    asked_for = len(PROMPTS) * count
    ratio, slower, slowest = (
        one["seconds"] * at / latency / asked_for for one, (_, at) in zip(found, ways, strict=True)
    )
    more, alone, _ = found
    lost, wrong = (sum(one[name] for one in found) for name in ("lost", "wrong"))
    what = f"{asked_for:,} questions ({count:,} items × {len(PROMPTS)} prompts), three times"
    return [
        Row(f"{what} to two servers, of many and of one prompt a request: lost", lost, "", "0",
            lost == 0),
        Row("… another letter on top than the server told", wrong, "", "0", wrong == 0),
        Row(f"… many prompts a request ({more['requests']:,.0f} requests): time over {latency:g} s "
            f"× {asked_for:,} ÷ {less} at once", ratio, " ×", "≤ 1.3 ×", ratio <= 1.3),
        Row("… one prompt a request: the same", slower, " ×", "≤ 1.3 ×", slower <= 1.3),
        Row("… one prompt a request: client CPU, milliseconds a question",
            1000 * alone["cpu"] / asked_for, " ms", "reported", True),
        Row(f"… one prompt a request, {most} at once (the default): time over {latency:g} s × "
            f"{asked_for:,} ÷ {most}", slowest, " ×", "reported", True),
    ]  # fmt: skip


def _waited(
    faults: Faults, count: int, latency: float, concurrency: int, say: Say
) -> dict[str, float]:
    """What `asked` found at a server with these faults, and how many `requests` that had."""
    environment = os.environ | {"WORKBENCH_PROGRESS": "off"}
    with Injector(faults, latency=latency, vllm=False, tops=_tops) as server:
        command = [sys.executable, "-c", CHILD, server.url, str(count), str(concurrency)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    say(
        f"{server.requests:,} requests, {server.peak} at once at most: {found['seconds']:.1f} s, "
        f"the client at work for {found['cpu']:.1f} s"
    )
    return found | {"requests": server.requests}


def _options(say: Say) -> list[Row]:
    with VLLMEngine(None, None, "benchmark", {}) as engine:
        return _embedded(engine, say)


def _embedded(engine: Engine, say: Say, count: int = 2000) -> list[Row]:
    """What the embedded model's own probabilities are worth, without any example."""
    report = elicit([open_choices("options")], [engine], ["base"], count=count)
    logits, answers, done = arrays(report.rows)
    right = logits.argmax(axis=1) == answers
    say(f"{len(done)} of {count} questions answered, {right.mean():.1%} right")
    what = f"embedded model, {count:,} questions of six options, no examples: accuracy"
    return [
        share_row(replace(report.summary[0], name=what)),
        *_covered(logits, answers),
        *_rescaled(logits, answers),
        *_selected(logits, right, done["length"].to_numpy()),
    ]


def _covered(logits: NDArray[Any], answers: NDArray[Any]) -> list[Row]:
    report = conformal_report(logits, answers, rule="exact")
    shares = {metric.name: metric for metric in report.metrics()}
    what = "… coverage of {} sets at 90 %, exact rule ({:.2f} letters a set)"
    named = {one.score.upper(): one.set_size for one in report.scores}
    return [
        share_row(replace(shares[f"coverage {score}"], name=what.format(score, size)))
        for score, size in named.items()
    ]


def _rescaled(logits: NDArray[Any], answers: NDArray[Any]) -> list[Row]:
    """Calibration errors of one half, as they are and with what the other half taught."""
    methods: tuple[Method, ...] = ("temperature", "isotonic")
    found = [rescaled(logits, answers, method=method) for method in methods]
    rows = [_reported("… ECE of the test half", found[0].before.metrics()[0])]
    for one in found:
        how = one.method if one.temperature is None else f"{one.method} {one.temperature:.2f}"
        rows.append(_reported(f"… ECE after {how}", one.after.metrics()[0]))
        rows.append(_reported("… after minus before", one.difference))
    # One temperature cannot lower the ECE of a model that is too sure at the top only.
    best = found[-1].difference
    return [*rows[:-1], replace(rows[-1], bound="< 0, interval too", holds=best.high < 0)]


def _reported(what: str, m: Metric) -> Row:
    return Row(what, m.value, "", "reported", True, m.low, m.high, m.n, "items")


def _selected(logits: NDArray[Any], right: NDArray[Any], lengths: NDArray[Any]) -> list[Row]:
    """How well confidence tells right answers from wrong, beside what knows nothing."""
    signals = {"confidence": from_options(logits)["confidence"]}
    table = selective_report(signals, right, lengths=lengths)
    rows = [
        Row(f"… AUROC of {one['signal']}", one["auroc"], "", "reported", True, one["auroc_low"],
            one["auroc_high"], len(right), "items")
        for one in table.to_dict("records")
    ]  # fmt: skip
    what, half = "… accuracy of the surest half", 100 * float(table["accuracy_50"].iloc[0])
    return [*rows, Row(f"{what} (of all: {right.mean():.1%})", half, " %", "reported", True)]


PARTS: Mapping[str, Callable[[Say], list[Row]]] = {
    "published": _published, "coverage": _coverage, "queue": _queue, "options": _options,
}  # fmt: skip
NAMES = tuple(PARTS)
