"""The embedded model's skills: each on held-out items, against its target."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import workbench
from benchmarks.harness import Measurement, gain, judged, share, transformers_model
from tools.training import text
from tools.training.marks import unmarked
from workbench.cli.output import say
from workbench.engines import open_engine
from workbench.evaluation import accuracy, accuracy_by, evaluate
from workbench.stats import balanced_accuracy, calibration_error, difference, proportion
from workbench.tasks import Claims, Options, Verdicts, WordProblems
from workbench.tasks.arithmetic import equations
from workbench.tasks.base import BaseTask, worded
from workbench.tasks.word_problems import solution, stories
from workbench.tiny import MODEL
from workbench.types import Completion, Engine, Item, Metric, Sampling

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

CONTEXT = 2048
VOTES = Sampling(max_tokens=160, stop=("\n\n",), temperature=0.8, n=16, seed=0)


def measure(
    folder: Annotated[Path, typer.Argument(help="A model (default: the embedded).")] = MODEL,
    count: Annotated[int, typer.Option(min=100, help="Held-out items for each skill.")] = 1000,
) -> list[Measurement]:
    """Every skill of the embedded model against its target."""
    rows: list[Measurement] = []
    with open_engine(str(folder), "vllm", store=None) as engine:
        for title, skill in SKILLS.items():
            say(f"{title} …")
            rows += skill(engine, count)
        say("decoding against transformers …")
        rows.append(_same_tokens(engine, folder, min(500, count)))
    say("any text …")
    return [*rows, *_any_text(folder)]


def _word_problems(engine: Engine, count: int) -> list[Measurement]:
    task = WordProblems()
    greedy = evaluate(task, engine, count=count)
    chat = evaluate(task, engine, count=count, style="chat")
    shown = evaluate(task, engine, count=count, shots=4)
    items = task.items(count)
    voted = engine.generate([task.prompt(item) for item in items], VOTES)
    votes = [_vote(task, item, answer) for item, answer in zip(items, voted, strict=True)]
    steps = accuracy_by(greedy.rows, "steps")
    falls = all(a.value > b.value for a, b in pairwise(steps))
    by_steps = ", ".join(f"{100 * metric.value:.0f}" for metric in steps)
    what = f"… from 1 step to 4 ({by_steps} %)"
    slope = 100 * (steps[-1].value - steps[0].value)
    return [
        share(accuracy(greedy.rows, "word problems, greedy"), least=0.6, most=0.9),
        Measurement(what, slope, " points", "falling each time", falls, runs=count),
        share(accuracy(chat.rows, "… through the chat template"), least=0.6, most=0.9),
        share(accuracy(shown.rows, "… after 4 examples, step by step")),
        share(proportion("… majority of 16 at temperature 0.8", sum(votes), len(votes))),
        gain(_gain(votes, greedy.rows), least=0.05),
    ]


def _gain(votes: Sequence[bool], greedy: pd.DataFrame) -> Metric:
    """The gain of voting on the items with an answer."""
    import numpy as np

    answered = greedy["error"].isna().to_numpy()
    right = greedy["correct"].to_numpy()[answered]
    return difference("… majority over greedy", np.array(votes)[answered], right)


def _vote(task: BaseTask, item: Item, answer: Completion) -> bool:
    """Whether the most frequent readable answer is right; ties go to the first."""
    grades = [task.grade(item, sample.text) for sample in answer.samples if not sample.error]
    counts = Counter(grade.extracted for grade in grades if grade.parsed)
    return bool(counts) and counts.most_common(1)[0][0] == item.answer


def _choose(
    task: BaseTask, engine: Engine, items: Sequence[Item], shots: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Log-probabilities of the task's labels [n, m], and whether the likeliest is right [n]."""
    import numpy as np

    prompts = [task.prompt(item, shots) for item in items]
    logprobs = engine.label_logprobs(prompts, task.labels).logprobs
    names = np.array([label.strip() for label in task.labels])
    return logprobs, names[logprobs.argmax(axis=1)] == [item.answer for item in items]


def _claims(engine: Engine, count: int) -> list[Measurement]:
    import numpy as np
    from scipy.stats import mannwhitneyu

    task, items = Claims(), Claims().items(count)
    logprobs, bare = _choose(task, engine, items)
    shown = {shots: _choose(task, engine, items, shots)[1] for shots in (32, 128)}
    _, noise = _choose(Claims("random"), engine, items, 32)
    odds, true = logprobs[:, 0] - logprobs[:, 1], np.array([i.answer == "True" for i in items])
    pairs = true.sum() * (~true).sum()
    ranked = float(mannwhitneyu(odds[true], odds[~true]).statistic / pairs)
    return [
        share(_share("claims, 32 correct demonstrations", shown[32]), least=0.9),
        share(_share("… 128 correct demonstrations", shown[128])),
        share(_share("… zero-shot", bare), most=0.6),
        judged("… zero-shot, a right claim above a wrong one", 100 * ranked, " %"),
        share(_share("… 32 random labels", noise)),
        gain(difference("… 32 correct over 32 random labels", shown[32], noise)),
    ]


def _options(engine: Engine, count: int) -> list[Measurement]:
    import numpy as np

    task = Options()
    items = task.items(2 * count)
    logprobs, right = _choose(task, engine, items)
    mass = float(np.exp(logprobs).sum(axis=1).mean())
    chances = np.exp(logprobs - np.logaddexp.reduce(logprobs, axis=1, keepdims=True))
    error = calibration_error(chances.max(axis=1), right)
    over = float(chances.max(axis=1).mean() - right.mean())
    side = "over" if over > 0 else "under"
    rows = [share(_share("options, zero-shot", right), least=0.6)]
    for level in dict.fromkeys(item.fields["level"] for item in items):
        chosen = np.array([item.fields["level"] == level for item in items])
        rows.append(share(_share(f"… {level}", right[chosen])))
    what = f"… calibration error, {side}confident by {100 * abs(over):.1f} points"
    return [
        *rows,
        judged(what, 100 * error, " %", "≥ 5 and ≤ 15", runs=len(items)),
        judged("… probability of the six letters", 100 * mass, " %", "≥ 95"),
    ]


def _verdicts(engine: Engine, count: int) -> list[Measurement]:
    rows = []
    for reference, least in ((True, 0.9), (False, 0.0)):
        task = Verdicts(reference=reference)
        items = task.items(count)
        _, right = _choose(task, engine, items)
        name = "verdicts, balanced" if reference else "… without the reference answer, balanced"
        metric = balanced_accuracy(name, right, [item.answer for item in items])
        rows.append(share(metric, least=least))
    return rows


def _share(name: str, right: NDArray[np.bool_]) -> Metric:
    return proportion(name, int(right.sum()), len(right))


SKILLS: dict[str, Callable[[Engine, int], list[Measurement]]] = {
    "word problems": _word_problems,
    "claims": _claims,
    "options": _options,
    "verdicts": _verdicts,
}


def _same_tokens(engine: Engine, folder: Path, count: int) -> Measurement:
    """Greedy answers of vLLM and of transformers, both in float32, token by token.

    An answer ends at its empty line; the text after it depends on ties between numbers.
    """
    task = WordProblems()
    items = task.items(count)
    prompts = [str(task.prompt(item, shots=index % 3)) for index, item in enumerate(items)]
    ours = [list(answer.token_ids or ()) for answer in engine.generate(prompts, task.sampling)]
    theirs = _transformers_tokens(folder, prompts, task.sampling)
    unlike = sum(not a or a != b[: len(a)] for a, b in zip(ours, theirs, strict=True))
    what = f"greedy answers unlike those of transformers, float32, {count} prompts"
    return judged(what, unlike, bound="0")


def _transformers_tokens(
    folder: Path, prompts: Sequence[str], sampling: Sampling
) -> list[list[int]]:
    """Token ids after each prompt, in groups of equal length, so that nothing is padded."""
    import torch

    tokenizer, model = transformers_model(folder)
    encoded = [tokenizer(prompt).input_ids for prompt in prompts]
    answers: list[list[int]] = [[] for _ in prompts]
    for size in {len(ids) for ids in encoded}:
        where = [i for i, ids in enumerate(encoded) if len(ids) == size]
        batch = torch.tensor([encoded[i] for i in where])
        with torch.inference_mode():
            tokens = model.generate(
                batch,
                attention_mask=torch.ones_like(batch),
                max_new_tokens=sampling.max_tokens,
                stop_strings=list(sampling.stop),
                tokenizer=tokenizer,
                do_sample=False,
            )
        for i, row in zip(where, tokens[:, size:].tolist(), strict=True):
            answers[i] = row
    return answers


def _any_text(folder: Path) -> list[Measurement]:
    """Perplexity late in a long text against early, and round trips through the tokenizer."""
    import numpy as np

    tokenizer, model = transformers_model(folder)
    rows, lost, total = [], 0, 0
    for name, texts in LONG_TEXTS.items():
        encoded = {one: tokenizer(one, verbose=False).input_ids for one in texts()}
        total += len(encoded)
        lost += sum(tokenizer.decode(ids) != one for one, ids in encoded.items())
        losses = np.array([_losses(model, ids[:CONTEXT]) for ids in encoded.values()])
        early, late = (np.exp(half.mean()) for half in np.split(losses, [CONTEXT // 2], axis=1))
        what = f"{name}: perplexity of tokens 1,025 to {CONTEXT:,} over the first ({early:.3g})"
        rows.append(judged(what, float(late / early), " ×", "≤ 1"))
    what = f"texts of {CONTEXT:,} tokens or more that do not round-trip, of {total}"
    return [*rows, judged(what, lost, bound="0")]


def _losses(model: Any, ids: list[int]) -> NDArray[np.float64]:
    """Loss in nats of every token [n - 1] but the first."""
    import torch

    batch = torch.tensor([ids])
    with torch.inference_mode():
        logits = model(batch).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, batch[0, 1:], reduction="none")
    values: NDArray[np.float64] = losses.double().numpy()
    return values


def _skill_texts() -> list[str]:
    """An endless text of labelled claims and solved word problems about held-out sums."""
    rng = random.Random("long")
    texts = []
    for _ in range(16):
        groups = islice(equations(rng, held_out=True), 200)
        lines = [f"{claim} {claim.right}\n" for group in groups for claim in group]
        texts.append("".join(lines))
        solved = islice(stories(rng, held_out=True), 60)
        both = ((worded(one.question), solution(one, "first")) for one in solved)
        texts.append("".join(f"{question} {answer}\n\n" for question, answer in both))
    return texts


def _other_texts() -> list[str]:
    """Words of no language, every script in turn."""
    rng = random.Random("other")
    return [unmarked(text.other(rng, script, 2000)) for script in text.SCRIPTS for _ in range(4)]


def _source_texts() -> list[str]:
    """Text unlike any in the training: this package's own source, 16 pieces of it."""
    root = Path(workbench.__file__).parent
    source = "\n".join(path.read_text("utf-8") for path in sorted(root.rglob("*.py")))
    return [source[at : at + 12_000] for at in range(0, 16 * 8_000, 8_000)]


LONG_TEXTS: dict[str, Callable[[], list[str]]] = {
    "skills": _skill_texts,
    "words of no language": _other_texts,
    "source code": _source_texts,
}
