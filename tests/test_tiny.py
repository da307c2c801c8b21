"""The embedded model: its text, its split, its tokenizer, its training, its skill."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from workbench.engines.vllm import VLLMEngine
from workbench.errors import InputError
from workbench.evaluation import evaluate
from workbench.tasks import Sums
from workbench.tiny import MODEL
from workbench.tiny import train as train_module
from workbench.tiny.arithmetic import Sum, documents, is_held_out, problems, wrong_result
from workbench.tiny.train import Recipe, train


def test_no_training_document_holds_a_held_out_problem() -> None:
    text = "".join(islice(documents(5), 400))
    seen = {Sum(int(a), op, int(b)) for a, op, b in re.findall(r"(\d+)([+*-])(\d+)", text)}
    assert len(seen) > 2000
    assert not any(is_held_out(problem) for problem in seen)


def test_the_split_does_not_depend_on_the_order_of_the_operands() -> None:
    for a in range(50):
        for op in "+*":
            assert is_held_out(Sum(a, op, 99 - a)) == is_held_out(Sum(99 - a, op, a))


def test_the_same_seed_gives_the_same_text() -> None:
    assert list(islice(documents(3), 20)) == list(islice(documents(3), 20))
    assert list(islice(documents(3), 20)) != list(islice(documents(4), 20))


def test_wrong_results_are_wrong() -> None:
    rng = random.Random(0)
    for problem in islice(problems(rng, held_out=True), 500):
        assert wrong_result(problem, rng) != problem.result >= 0


@pytest.mark.parametrize("text", ["17+25=42 True\n", "héllo ☃ 𝔘", "\x00\x7f\t", "１２ 12345"])
def test_any_text_survives_the_tokenizer(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert [tokenizer.decode([i]) for i in tokenizer("4821").input_ids] == list("4821")


def test_the_weights_are_small_and_need_no_remote_code() -> None:
    assert sum(p.stat().st_size for p in MODEL.iterdir()) < 12 * 2**20
    config = json.loads((MODEL / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] >= 2048
    assert "auto_map" not in config


def test_most_held_out_sums_are_right(plain: VLLMEngine) -> None:
    report = evaluate(Sums(), plain, count=500)
    (metric,) = report.summary
    assert metric.low > 0.6
    assert metric.n == 500


def test_the_grader_accepts_every_gold_answer() -> None:
    task = Sums()
    for item in task.items():
        assert task.grade(item, item.answer).correct
        assert task.grade(item, f"{item.id}={item.answer}\n1+1=3").correct
        assert task.grade(item, f"{int(item.answer) + 1}").correct is False
    assert task.grade(task.items(1)[0], "no idea").parsed is False


def test_more_items_than_there_are() -> None:
    with pytest.raises(InputError, match="the held-out sums"):
        Sums().items(100_000)
    with pytest.raises(InputError, match="count=0"):
        Sums().items(0)


SMALL = Recipe(width=32, layers=1, heads=1, feed_forward=32, length=32, rows=2, steps=220)


def test_training_resumes_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "whole", SMALL)

    batches = train_module._batches

    def until_stopped(recipe: Recipe, encode: object, start: int) -> Iterator[object]:
        yield from islice(batches(recipe, encode, start), 150)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "_batches", until_stopped)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", SMALL)
    with pytest.raises(InputError, match="another recipe"):
        train(tmp_path / "parts", Recipe(width=64))
    train(tmp_path / "parts", SMALL)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]
    assert not (tmp_path / "parts" / "state.pt").exists()
