"""A pretrained model beside the embedded one: how exact, how fast and how good it is here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.table import Row, ratio_row, share_row
from workbench.engines import open_engine
from workbench.evaluation import accuracy, evaluate
from workbench.icm import open_testbed, search
from workbench.load import Load, open_both, versus
from workbench.stats import proportion
from workbench.tasks import GSM8K, TruthfulQA, WordProblems
from workbench.tasks.multiple_choice import open_choices
from workbench.throughput import Throughput
from workbench.types import Engine, Metric
from workbench.uncertainty.elicit import elicit
from workbench.uncertainty.report import score_options

Say = Callable[[str], None]
LETTERS = "options, letters of six in a 90 % conformal set"
SHORT = 96  # tokens of an answer whose text is compared


@dataclass(frozen=True, slots=True)
class Measured:
    """Rows for the table; by model, what it scores."""

    rows: list[Row]
    scores: Mapping[str, Sequence[Metric]]


def measure(model: str, say: Say, *, repeats: int = 3) -> Measured:
    """All of it: some ten minutes for 270 million parameters on two cores.

    Args:
        model: folder, hub name or GGUF file.
        repeats: rounds of each speed.
    """
    scores = {}
    for one in (None, model):
        with open_engine(one, "vllm", store=None) as engine:
            scores[Path(engine.info.model).stem] = _quality(engine, say)
    rows = [_row(f"{name}: {metric.name}", metric) for name in scores for metric in scores[name]]
    return Measured([*rows, *_exactness(model, say), *_speed(model, say, repeats)], scores)


def draw(scores: Mapping[str, Sequence[Metric]], file: Path) -> None:
    """Bars of all models' shares beside each other."""
    from workbench.plots import new_figure, plot_accuracy

    figure, panels = new_figure(len(scores))
    for panel, (name, metrics) in zip(panels, scores.items(), strict=True):
        shares = [metric for metric in metrics if metric.name != LETTERS]
        plot_accuracy(panel, [replace(one, name=one.name.split(",")[0]) for one in shares])
        panel.set_title(name, fontsize=10)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150, bbox_inches="tight", metadata={"Software": None})


def _row(what: str, metric: Metric) -> Row:
    row = share_row(replace(metric, name=what))
    if metric.name != LETTERS:
        return row
    return replace(row, value=metric.value, low=metric.low, high=metric.high, unit="", holds=True)


def _exactness(model: str, say: Say, prompts: int = 50, claims: int = 100) -> list[Row]:
    """vLLM against transformers, both in float32: greedy texts of GSM8K, labels of TruthfulQA."""
    task = GSM8K()
    more: dict[str, Any] = {"dtype": "float32", "max_model_len": 2048}
    texts = [task.prompt(item, shots=1) for item in task.items(prompts)]
    sampling = replace(task.sampling, max_tokens=SHORT)
    asked = [str(TruthfulQA().prompt(item)) for item in TruthfulQA().items(claims)]
    labels = TruthfulQA.labels
    with open_engine(model, "vllm", store=None, **more) as engine:
        say("texts and labels by vLLM …")
        ours = engine.generate(texts, sampling)
        scores = engine.label_logprobs(asked, labels).logprobs
    with open_engine(model, "transformers", store=None, **more) as engine:
        say("… and by transformers …")
        theirs = engine.generate(texts, sampling)
    plain = _forward(model, asked, labels)
    other = sum(a.text != b.text for a, b in zip(ours, theirs, strict=True))
    farthest = max(
        abs(float(mine) - forward)
        for row, truth in zip(scores, plain, strict=True)
        for mine, forward in zip(row, truth, strict=True)
    )
    what = f"other texts than transformers', {prompts} GSM8K prompts of {SHORT} tokens, float32"
    nats = f"label log-probabilities, {claims} claims, farthest from a plain forward, float32"
    return [
        Row(what, other, "", "reported", True),
        Row(nats, farthest, " nats", "≤ 1e-3", farthest <= 1e-3),
    ]


def _forward(folder: str, prompts: Sequence[str], labels: Sequence[str]) -> list[list[float]]:
    """Each label's log-probability from one forward pass over the prompt and the label."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    rows = []
    for prompt in prompts:
        before = tokenizer(prompt).input_ids
        row = []
        for label in labels:
            after = tokenizer(label, add_special_tokens=False).input_ids
            with torch.inference_mode():
                logits = model(torch.tensor([before + after])).logits[0].double()
            places = logits.log_softmax(-1)[len(before) - 1 : -1]
            row.append(sum(float(at[token]) for at, token in zip(places, after, strict=True)))
        rows.append(row)
    return rows


def _speed(model: str, say: Say, repeats: int) -> list[Row]:
    """vLLM over transformers at batch 1 and at its best, and over bare vLLM, in turns."""
    load = Load(requests=64, prompt_tokens=96, output_tokens=16)
    fast, slow = open_both(model)
    assert slow is not None
    with fast, slow:
        say(f"{repeats} rounds of speed, {fast.info.dtype} …")
        runners = versus(fast, slow, (1, 8, 32))
        table = Throughput(runners, [load], repeats=repeats).run().rows
        dtype = fast.info.dtype
    wide = table.pivot_table(index="repeat", columns="label", values="requests_per_s")
    mine = wide["vllm, all at once"]
    theirs = wide[[label for label in wide if str(label).startswith("transformers")]]
    size = f"{load.requests} prompts of {load.prompt_tokens} + {load.output_tokens} tokens, {dtype}"
    rows = []
    for what, other in (
        (f"vLLM over transformers at batch 1, {size}", theirs["transformers, batch 1"]),
        ("… at its best of 1, 8, 32", theirs.max(axis=1)),
        ("… over bare `LLM.generate`", wide["bare LLM.generate, all at once"]),
    ):
        rows.append(ratio_row(what, [float(a) / float(b) for a, b in zip(mine, other)], 0))  # noqa: B905
    return rows


def _quality(engine: Engine, say: Say, count: int = 100, gsm8k: int = 50) -> list[Metric]:
    """What a model scores: headline numbers with their intervals, prompts as they are."""
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
