"""A pretrained model beside the embedded one: how exact, how fast and how good it is here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from workbench.bench.table import Row, ratio_row
from workbench.engines import open_engine
from workbench.evaluation import accuracy, evaluate
from workbench.icm import open_testbed, search
from workbench.runner import Load, open_both, versus
from workbench.stats import proportion
from workbench.tasks import GSM8K, TruthfulQA, WordProblems
from workbench.tasks.choices import open_choices
from workbench.throughput import Throughput
from workbench.types import Engine, Metric
from workbench.uncertainty.elicit import elicit
from workbench.uncertainty.report import score_options

__all__ = ["exactness", "quality", "speed"]

Say = Callable[[str], None]
SHORT = 96  # tokens of an answer whose text is compared


def exactness(model: str, say: Say, *, prompts: int = 50, claims: int = 100) -> list[Row]:
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


def speed(model: str, say: Say, *, repeats: int = 3) -> list[Row]:
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


def quality(model: str | None, say: Say, *, count: int = 100, gsm8k: int = 50) -> list[Metric]:
    """What a model scores: headline numbers with their intervals, prompts as they are."""
    with open_engine(model, "vllm", store=None) as engine:
        say(f"{engine.info.model}: tasks …")
        found = [
            _solved(WordProblems(), engine, count, shots=4),
            _solved(GSM8K(), engine, gsm8k, shots=4),
            _believed(engine, count),
            *_certain(engine, count),
        ]
        say(f"{engine.info.model}: ICM …")
        bed = open_testbed("truthfulqa", count=24, test_count=2, seed=0)
        labelled = search(bed.draw(16, 0).claims, engine, wording=bed.wording, n_iterations=60)
        found.append(replace(labelled.summary[0], name="ICM on 16 claims, right labels"))
    return found


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
    return proportion("TruthfulQA claims, 4 examples, likelier label", right, len(items))


def _certain(engine: Engine, count: int) -> list[Metric]:
    rows = elicit([open_choices("options", demonstrations=5)], [engine], ["base"], count=count)
    scored = {metric.name: metric for metric in score_options(rows, score="lac").summary}
    return [
        replace(scored["accuracy"], name="options, 5 examples"),
        replace(scored["set size LAC"], name="… letters in a 90 % set, of six"),
    ]
