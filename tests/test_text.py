"""The embedded model's text: what is held out, what is marked, and its tokenizer."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator
from itertools import islice

import pytest
from transformers import AutoTokenizer

from tools.training import tokenizer
from tools.training.marks import END, decided, learned, split, unmarked
from tools.training.stages import STAGES
from tools.training.text import SCRIPTS, documents, exchange, other
from workbench.tasks import Claims, Options, Verdicts
from workbench.tasks.arithmetic import Sum, equations, is_held_out, problems, wrong_result
from workbench.tasks.options import choices
from workbench.tasks.word_problems import MANNERS, candidates, expression, solution, stories
from workbench.tiny import MODEL

OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


def steps(node: ast.expr) -> Iterator[Sum]:
    """Every sum that the value of an expression takes."""
    if isinstance(node, ast.BinOp):
        yield from steps(node.left)
        yield from steps(node.right)
        left, right = (eval(ast.unparse(side)) for side in (node.left, node.right))
        yield Sum(int(left), OPERATORS[type(node.op)], int(right))


def held_out() -> list[Sum]:
    """All problems of the test side that `problems` can draw."""
    sums = [Sum(a, op, b) for op in "+-" for a in range(100) for b in range(100)]
    products = [Sum(a, "*", b) for a in range(2, 10) for b in range(2, 21)]
    return [p for p in sums + products if p.result >= 0 and is_held_out(p)]


def sums_in(text: str) -> set[Sum]:
    runs = re.findall(r"[\d(][\d+*/()-]*[+*/-][\d+*/()-]*[\d)]", text)
    return {s for run in runs for s in steps(ast.parse(run, mode="eval").body)}


@pytest.mark.parametrize("stage", range(len(STAGES)))
def test_no_training_document_holds_a_held_out_sum(stage: int) -> None:
    text = "".join(islice(documents(5, STAGES[stage].until - 0.01, other=False), 300))
    seen = sums_in(unmarked(text))
    assert len(seen) > 300
    assert {s.op for s in seen} == set("+-*/")
    assert not any(map(is_held_out, seen))


def test_the_test_side_always_rests_on_a_held_out_sum() -> None:
    rng, stated = random.Random(1), ("sum told", "counted")
    for story in islice(stories(rng, held_out=True), 300):
        assert any(map(is_held_out, story.steps))
        assert sums_in(expression(story.steps)) == set(story.steps)
        assert eval(expression(story.steps)) == story.answer
    for choice in islice(choices(rng, held_out=True, levels=("sum", *stated)), 300):
        assert any(map(is_held_out, sums_in(choice.question)))
    for group in islice(equations(rng, held_out=True), 300):
        assert is_held_out(group[0].problem)


def test_the_split_knows_operands_by_any_order_and_quotients_by_their_product() -> None:
    for a in range(50):
        for op in "+*":
            assert is_held_out(Sum(a, op, 99 - a)) == is_held_out(Sum(99 - a, op, a))
    for a in range(2, 20):
        assert is_held_out(Sum(7 * a, "/", 7)) == is_held_out(Sum(7, "*", a))
    assert 0.08 < len(held_out()) / (10_000 + 5_050 + 152) < 0.12
    assert not any(max(p.left, p.right) < 10 for p in held_out())


def test_the_same_seed_gives_the_same_text() -> None:
    assert list(islice(documents(3), 20)) == list(islice(documents(3), 20))
    assert list(islice(documents(3), 20)) != list(islice(documents(4), 20))


def test_wrong_results_and_wrong_solutions_are_wrong() -> None:
    rng = random.Random(0)
    for problem in islice(problems(rng, held_out=True), 500):
        assert wrong_result(problem, rng) != problem.result >= 0
    for story, candidate, right in islice(candidates(rng, held_out=True), 500):
        assert (int(candidate.rpartition("#### ")[2]) == story.answer) is right


def test_worked_solutions_compute_what_they_say() -> None:
    rng = random.Random(2)
    for story in islice(stories(rng, held_out=False), 300):
        for manner in MANNERS:
            text = solution(story, manner)
            for left, right in re.findall(r"([\d+*/()-]*[+*/-][\d+*/()-]*)=(\d+)", text):
                assert eval(left) == int(right)
            assert text.endswith(f"\n#### {story.answer}")
        assert all(value > 0 for value in (story.answer, *(s.result for s in story.steps)))


def test_claims_about_one_problem_exclude_each_other() -> None:
    groups = list(islice(equations(random.Random(3), held_out=True), 2000))
    assert all(sum(claim.right for claim in group) <= 1 for group in groups)
    assert all(len(set(group)) == len(group) for group in groups)
    right = [claim.right for group in groups for claim in group]
    assert 0.4 < sum(right) / len(right) < 0.6
    assert {len(group) for group in groups} == {1, 2, 3}


def test_options_hold_the_answer_once() -> None:
    for choice in islice(choices(random.Random(4), held_out=True), 800):
        assert len(set(choice.texts)) == 6
        answer = choice.right
        if choice.level == "sum":
            assert eval(choice.question.removeprefix("What is ").removesuffix("?")) == answer
        elif choice.level == "hidden":
            assert f" {answer} " not in choice.question
        else:
            assert (
                f"={answer} " if choice.level == "counted" else choice.stated
            ) in choice.question


def test_marks_are_split_from_the_text() -> None:
    text = f"17+25={learned(42)}{decided(' True')} and {decided(' B', rare=True)}\n"
    plain, spans = split(text)
    assert plain == unmarked(text) == "17+25=42 True and  B\n"
    assert [(plain[a:b], weight) for a, b, weight in spans] == [
        ("42", 1),
        (" True", 4),
        (" B", 16),
    ]


TEXTS = [
    "17+25=42 True\n",
    "héllo ☃ 𝔘",
    "\x00\x7f\t",
    "１２ 12345",
    " \n\n ",
    "é\u0301\u202e\ufeff",
]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_survives_the_tokenizer(text: str) -> None:
    shipped = AutoTokenizer.from_pretrained(MODEL)
    assert shipped.decode(shipped(text).input_ids) == text


def test_long_text_in_any_script_survives_the_tokenizer() -> None:
    shipped = AutoTokenizer.from_pretrained(MODEL)
    for script in (*SCRIPTS, (0x0, 0x2FF), (0x10000, 0x10FFFF)):
        text = unmarked(other(random.Random(1), script, 1500)).replace("\r", "")
        ids = shipped(text).input_ids
        assert len(ids) > 2048
        assert shipped.decode(ids) == text


def test_the_tokens_are_as_promised() -> None:
    shipped = AutoTokenizer.from_pretrained(MODEL)
    assert [shipped.decode([i]) for i in shipped("4821").input_ids] == list("4821")
    for label in (
        *Claims.labels,
        *Verdicts.labels,
        *Options.labels[:4],
    ):
        assert len(shipped(label).input_ids) == 1
    groups = islice(equations(random.Random(6), held_out=True), 100)
    lines = [f"{claim} {claim.right}\n" for group in groups for claim in group][:128]
    assert len(lines) == 128
    assert len(shipped("".join(lines)).input_ids) < 2048 - 128


def test_the_shipped_tokenizer_is_the_one_that_the_text_gives() -> None:
    shipped = AutoTokenizer.from_pretrained(MODEL)
    assert tokenizer.build().get_vocab() == shipped.get_vocab()


def test_chats_in_the_text_are_as_the_template_writes_them() -> None:
    shipped = AutoTokenizer.from_pretrained(MODEL)
    turns = [{"role": "user", "content": "What is 1+1?"}, {"role": "assistant", "content": "1+1=2"}]
    written = shipped.apply_chat_template(turns, tokenize=False)
    assert written == exchange("What is 1+1?", "1+1=2") + END
    asked = shipped.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert asked == exchange("What is 1+1?")
