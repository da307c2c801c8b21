"""A pretrained model compared with the embedded one: exactness, speed and quality here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.baseline import against_baseline
from benchmarks.harness import (
    Measurement,
    Repeats,
    differing,
    interval,
    judged,
    reference_logprobs,
    share,
)
from workbench.cli.output import say
from workbench.engines import open_engine
from workbench.evaluation import accuracy, evaluate
from workbench.icm import open_testbed, search
from workbench.load import Load, open_both
from workbench.stats import proportion
from workbench.tasks import GSM8K, TruthfulQA, WordProblems
from workbench.tasks.multiple_choice import open_choices
from workbench.types import Engine, Metric
from workbench.uncertainty.elicitation import elicit
from workbench.uncertainty.tables import score_options

LETTERS = "options, letters of six in a 90 % conformal set"
SHORT = 96  # tokens of an answer whose text is compared


def measure(
    model: Annotated[str, typer.Argument(help="Folder, hub name or GGUF file of a model.")],
    repeats: Repeats = 3,
    figure: Annotated[Path | None, typer.Option(help="Draw the scores here.")] = None,
) -> list[Measurement]:
    """A pretrained model compared with the embedded one: scores, exactness, speed."""
    scores = {}
    for one in (None, model):
        with open_engine(one, "vllm", store=None) as engine:
            scores[Path(engine.info.model).stem] = _quality(engine)
    if figure is not None:
        draw(scores, figure)
    rows = [_row(f"{name}: {metric.name}", metric) for name in scores for metric in scores[name]]
    return [*rows, *_exactness(model), *_speed(model, repeats)]


def draw(scores: Mapping[str, Sequence[Metric]], file: Path) -> None:
    """The shares of all models with their intervals, beside each other."""
    from workbench.plots import finding, new_figure, plot_accuracy
    from workbench.plots.theme import save

    figure, panels = new_figure(len(scores))
    for panel, (name, metrics) in zip(panels, scores.items(), strict=True):
        shares = [metric for metric in metrics if metric.name != LETTERS]
        plot_accuracy(panel, [replace(one, name=one.name.split(",")[0]) for one in shares])
        finding(panel, f"{name}: {panel.get_title(loc='left')}")
    file.parent.mkdir(parents=True, exist_ok=True)
    save(figure, file)


def _row(what: str, metric: Metric) -> Measurement:
    return interval(metric, what=what) if metric.name == LETTERS else share(metric, what)


def _exactness(model: str, prompts: int = 50, claims: int = 100) -> list[Measurement]:
    """vLLM against transformers, both in float32: greedy texts of GSM8K, labels of TruthfulQA."""
    task = GSM8K()
    more: dict[str, Any] = {"dtype": "float32", "max_model_len": 2048}
    texts = [task.prompt(item, shots=1) for item in task.items(prompts)]
    sampling = replace(task.sampling, max_tokens=SHORT)
    statements = [str(TruthfulQA().prompt(item)) for item in TruthfulQA().items(claims)]
    labels = TruthfulQA.labels
    with open_engine(model, "vllm", store=None, **more) as engine:
        say("texts and labels by vLLM …")
        ours = engine.generate(texts, sampling)
        scores = engine.label_logprobs(statements, labels).logprobs
    with open_engine(model, "transformers", store=None, **more) as engine:
        say("… and by transformers …")
        theirs = engine.generate(texts, sampling)
    farthest = float(abs(scores - reference_logprobs(model, statements, labels)).max())
    other = differing([row.text for row in ours], [row.text for row in theirs])
    what = f"other texts than transformers', {prompts} GSM8K prompts of {SHORT} tokens, float32"
    nats = f"label log-probabilities, {claims} claims, farthest from a plain forward, float32"
    return [judged(what, other), judged(nats, farthest, " nats", "≤ 1e-3")]


def _speed(model: str, repeats: int) -> list[Measurement]:
    """vLLM over transformers at batch 1 and at its best, and over bare vLLM; alternating."""
    load = Load(requests=64, prompt_tokens=96, output_tokens=16)
    fast, slow = open_both(model)
    assert slow is not None
    with fast, slow:
        say(f"{repeats} rounds of speed, {fast.info.dtype} …")
        size = f"{load.requests} prompts of {load.prompt_tokens} + {load.output_tokens} tokens, "
        return against_baseline(fast, slow, load, repeats, size + fast.info.dtype, (1, 8, 32))


def _quality(engine: Engine, count: int = 100, gsm8k: int = 50) -> list[Metric]:
    """A model's scores: headline numbers with their intervals, with unchanged prompts."""
    say(f"{Path(engine.info.model).stem}: tasks and ICM …")
    bed = open_testbed("truthfulqa", count=24, test_count=2, seed=0)
    labelled = search(bed.draw(16, 0).claims, engine, wording=bed.wording, n_iterations=60)
    return [
        _solved(WordProblems(), engine, count, shots=4),
        _solved(GSM8K(), engine, gsm8k, shots=4),
        _believed(engine, count),
        replace(labelled.summary[0], name="labels by ICM, 16 TruthfulQA claims"),
        *_certain(engine, count),
    ]


def _solved(task: Any, engine: Engine, count: int, shots: int) -> Metric:
    report = evaluate(task, engine, count=count, shots=shots)
    return accuracy(report.rows, f"{task.name.replace('_', ' ')}, {shots} examples")


def _believed(engine: Engine, count: int) -> Metric:
    task = TruthfulQA()
    items = task.items(count)
    scores = engine.label_logprobs([task.prompt(item, shots=4) for item in items], task.labels)
    named = [label.strip() for label in task.labels]
    right = sum(
        named[int(row.argmax())] == item.answer
        for row, item in zip(scores.logprobs, items, strict=True)
    )
    return proportion("TruthfulQA, 4 examples, the likelier label", right, len(items))


def _certain(engine: Engine, count: int) -> list[Metric]:
    rows = elicit([open_choices("options", demonstrations=5)], [engine], ["base"], count=count)
    scored = {metric.name: metric for metric in score_options(rows, score="lac").summary}
    return [
        replace(scored["accuracy"], name="options, 5 examples"),
        replace(scored["set size LAC"], name=LETTERS),
    ]
