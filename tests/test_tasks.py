"""The embedded tasks: items, prompts, graders, and that the model can do them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from workbench.engines.vllm import VLLMEngine
from workbench.errors import InputError
from workbench.evaluation import evaluate
from workbench.tasks import Claims, Options, Sums, Verdicts, WordProblems
from workbench.tasks.generated import Generated
from workbench.tiny import MODEL
from workbench.types import Item

TASKS = [Sums(), WordProblems(), Claims(), Claims("random"), Options(), Verdicts()]
each = pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)


@each
def test_items_differ_and_repeat(task: Generated) -> None:
    items = task.items(200, seed=3)
    assert len({item.id for item in items}) == 200
    assert items == task.items(200, seed=3)
    assert items != task.items(200, seed=4)
    json.dumps([[item.id, dict(item.fields), item.answer] for item in items])


@each
def test_the_grader_accepts_every_gold_answer(task: Generated) -> None:
    for item in task.items(300):
        assert task.grade(item, task.answer(item)).correct
        assert task.grade(item, f"{task.answer(item)}\n\nQuestion: 1+1?\n#### 3\n").correct
    silence = task.grade(item, " ")
    assert (silence.correct, silence.parsed) == (None, False)


def test_graders_tell_wrong_from_unreadable() -> None:
    (item,) = WordProblems().items(1)
    assert WordProblems().grade(item, f"#### {int(item.answer) + 1}").correct is False
    assert WordProblems().grade(item, item.answer).parsed is False
    (item,) = Options().items(1)
    wrong = "A" if item.answer != "A" else "B"
    assert Options().grade(item, f" {wrong}.").correct is False
    assert Options().grade(item, " Apple").parsed is False
    (item,) = Claims().items(1)
    assert Claims().grade(item, "Truely").parsed is False


@each
def test_examples_are_never_held_out_and_chats_alternate(task: Generated) -> None:
    item = task.items(1)[0]
    examples = [example for example, _ in zip(task.examples(item), range(50), strict=False)]
    assert not {example.id for example in examples} & {i.id for i in task.items(300)}
    prompt = task.prompt(item, 3)
    assert str(prompt).startswith(task.solved(examples[0]))
    assert str(prompt).endswith(task.ask(item))
    chat = task.prompt(item, 2, "chat")
    assert not isinstance(chat, str)
    assert [turn["role"] for turn in chat] == ["user", "assistant"] * 2 + ["user"]


def test_random_demonstrations_say_nothing_about_the_truth() -> None:
    item = Claims().items(1)[0]
    pairs = zip(Claims().examples(item), Claims("random").examples(item), range(400), strict=False)
    same = [gold.answer == noise.answer for gold, noise, _ in pairs]
    assert 0.4 < np.mean(same) < 0.6


@pytest.mark.parametrize("count", [0, -1, 100_000])
def test_impossible_counts(count: int) -> None:
    with pytest.raises(InputError, match=f"count={count}"):
        Sums().items(count)


def test_wrong_arguments() -> None:
    with pytest.raises(InputError, match="shots=-1"):
        Sums().prompt(Sums().items(1)[0], -1)
    with pytest.raises(InputError, match="demonstrations='gold'"):
        Claims("gold")  # type: ignore[arg-type]


def chosen(task: Generated, engine: VLLMEngine, items: list[Item], shots: int) -> float:
    prompts = [task.prompt(item, shots) for item in items]
    best = engine.label_logprobs(prompts, task.labels).logprobs.argmax(axis=1)
    answers = [task.labels[b].strip() for b in best]
    return float(np.mean([a == item.answer for a, item in zip(answers, items, strict=True)]))


def test_the_model_has_its_skills(plain: VLLMEngine) -> None:
    """Far looser than `workbench tiny evaluate`, on few items: something is there at all."""
    assert evaluate(Sums(), plain, count=200, shots=2).summary[0].low > 0.8
    words = evaluate(WordProblems(), plain, count=200)
    assert 0.5 < words.summary[0].value < 0.95
    assert words.summary[0].n_unparsed < 20
    assert evaluate(WordProblems(), plain, count=100, style="chat").summary[0].value > 0.5
    items = Claims().items(200)
    assert chosen(Claims(), plain, items, 32) > 0.85
    assert chosen(Claims(), plain, items, 0) < 0.65
    assert chosen(Verdicts(), plain, Verdicts().items(100), 0) > 0.8
    assert chosen(Options(), plain, Options().items(200), 0) > 0.5


def test_characters_never_seen_are_answered(plain: VLLMEngine) -> None:
    item = WordProblems().items(1)[0]
    prompt = str(WordProblems().prompt(item)).replace("has", "має 🦉 \x00 \u202e")
    (answer,) = plain.generate([prompt])
    assert answer.error is None
    scores = plain.label_logprobs([prompt], [" 猫", " True"])
    assert np.isfinite(scores.logprobs).all()


def test_the_weights_are_small_and_need_no_remote_code() -> None:
    assert sum(p.stat().st_size for p in MODEL.iterdir()) < 12 * 2**20
    config = json.loads((MODEL / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] >= 2048
    assert "auto_map" not in config
