"""Answers read out of responses: what counts as stated, what a number is, what is the same."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.answers import Style, canonical, equivalent, expressions, extract, grade
from workbench.answers.expressions import _worker, same_expression
from workbench.errors import InputError, WorkbenchError
from workbench.types import Grade

needs_data = pytest.mark.skipif(
    not os.environ.get("WORKBENCH_DATA"), reason="needs GSM8K: WORKBENCH_DATA is not set"
)
TOWER = r"\boxed{\dfrac{5^{(5^{(5^{(5^5)})}-4)}-5}{16}}"


# Which statement counts


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        # marks
        ("#### 18", "18"),
        ("####42", "42"),
        ("so 5\n#### 3\nno:\n#### 4", "4"),
        ("#### $42.00 dollars", "42"),
        ("#### **42**", "42"),
        ("#### The answer is 42", "42"),
        ("####\n42", "42"),
        ("#### 18 (because 9*2=18)", "18"),
        ("#### 3 + 4 = 7", "7"),
        ("#### 9 eggs * $2 = $18", "18"),
        ("#### x = 18", "18"),
        ("#### $18 per day", "18"),
        ("it is 16 - 3 = <<16-3=13>>13 #### 13", "13"),
        ("#### Step 1: add 3 and 4\nThat gives 7.", "7"),
        ("#### 1. Count the eggs\nThere are 9 of them", None),
        ("#### 18. That is it.", "18"),
        ("#### none of 5", None),
        ("#### I cannot tell", None),
        ("### 5", None),
        (r"\boxed{18}", "18"),
        (r"So $\boxed{\$18.50}$ it is", "18.5"),
        (r"\fbox{18\text{ dollars}}", "18"),
        (r"\boxed{\text{18 dollars}}", "18"),
        (r"\boxed{\dfrac{1}{2}}", "0.5"),
        (r"\boxed{x = 18}", "18"),
        (r"\boxed{\mathbf{18}}", "18"),
        (r"\boxed{ 3 } no, \boxed{4}", "4"),
        (r"\boxed{}", None),
        (r"\boxed{1", None),
        (r"\boxed{\frac{\sqrt{2}}{2}}", r"\frac{\sqrt{2}}{2}"),
        (r"\boxed{(5, 3)}", "(5, 3)"),
        (r"\boxed{x = 2 \text{ or } x = 3}", r"x = 2 \text{ or } x = 3"),
        ("#### 18 20", None),
        ("#### - 5", "-5"),
        ("#### Total: 18", None),
        (r"\boxed{\text{blue}}", "blue"),
        ("<answer>18</answer>", "18"),
        ("<answer>\n$18\n</answer> bye", "18"),
        ("<answer>18", None),
        # phrases
        ("The answer is 18.", "18"),
        ("the answer is: $18$", "18"),
        ("THE ANSWER IS 18", "18"),
        ("Final answer: 18", "18"),
        ("answer = 18", "18"),
        ("**Answer:** 18", "18"),
        ("**Answer**: **18**", "18"),
        ("Answer: `18`", "18"),
        ("## Answer\n\n18", "18"),
        ("Answer:\n$$18$$", "18"),
        ("The answer equals 18", "18"),
        ("My answer would be approximately 18 eggs.", "18"),
        ("The answer to the question is therefore 18.", "18"),
        ("The answer (in dollars) is 18", "18"),
        ("The answer is that she makes $18 a day. Nice!", "18"),
        ("The answer is 9 * 2 = 18 dollars. Good.", "18"),
        ("The answer is 18, not 20.", "18"),
        ("The answer is not 20 but 18.", "18"),
        ("The answer is 18 because 9*2=18", "18"),
        ("The answer is 18. It is not 20 or 5.", "18"),
        (r"The answer is \(18\).", "18"),
        (r"The answer is $\frac{3}{4}$ of it.", "0.75"),
        ("She eats 3.\nA: 18", "18"),
        ("A: 16 - 3 = 13 eggs\n13 * 2 = 26 dollars.", "26"),
        ("Answer: 16 - 3 = 13 eggs\nSo she makes 26 dollars.", "26"),
        ("Answer: 16 - 3 = 13", "13"),
        ("Answer: Janet has 16 eggs.\nShe makes 26 dollars.", "26"),
        ("Answer: 18\n\nI hope this helps with all 3 parts!", "18"),
        ("Die Antwort ist 18.", "18"),
        ("Antwort: 18", "18"),
        ("La respuesta es 18.", "18"),
        ("La réponse est 18", "18"),
        ("La risposta è 18.", "18"),
        ("A resposta é 18.", "18"),
        ("Ответ: 18", "18"),
        ("答案是18。", "18"),
        ("答案：18", "18"),
        ("答えは18です。", "18"),
        ("정답은 18입니다.", "18"),
        ("The answer is <b>18</b>", "18"),
        ("The answer is $x=5$.", "5"),
        ("The answer is one of these. #### Why", None),
        ("The answer is 20% of 90 = 18. Good", "18"),
        ("The answer is 20% of 90. Good", None),
        ("The answer is 18 minus 3, which is 15. Good", "15"),
        ("Answer → 18", "18"),
        ("Answer:\n- 18 dollars", "18"),
        ("所以答案是18。检查：18小于20。", "18"),
        ("现在他一共有18支铅笔。", "18"),
        ("La réponse est donc 1 250,50 € pour les 2 mois.", "1250.5"),
        ("The answer is the sum of 12 and 6, which is 18.", "18"),
        # no statement, or no readable one
        ("The answer is unknown.", None),
        ("The answer is not 20.", None),
        ("The answer isn't 20", None),
        ("The answer is 7?", None),
        ("There were 9 there on Friday.\nA: 18", "18"),
        ("If the answer is 7, then all is well", None),
        ("The answer is 5 apples and 3 pears.", None),
        ("The answer is 18 or 20.", None),
        ("The answer is 5-10.", None),
        ("The answer is 1 hour and 30 minutes.", None),
        ("The answer depends on 3 things", None),
        ("The answer is found by adding 3.", None),
        # the order of weight
        ("#### 18\nThe answer is 20.", "18"),
        ("The answer is 20.\n#### 18", "18"),
        (r"\boxed{3} at first. Final answer: 18", "18"),
        ("First #### 3. So the answer is 18 dollars.", "18"),
        ("#### 3\nWait, the answer is 18.", "18"),
        ("The answer is 7? No, wait. The answer is 8.", "8"),
        ("The answer is 18.\n#### Check\nwell", "18"),
        ("The answer is 18. The answer is not 20.", "18"),
        (r"#### 3" + "\n" + r"\boxed{18}", "18"),
        # nothing stated
        ("18", "18"),
        (" $18.00. ", "18"),
        ("18 apples", "18"),
        ("eighteen", "18"),
        ("She makes 18 dollars.", "18"),
        ("She sells 9. She makes 18 dollars every day.", "18"),
        ("So 9 * 2 = $18 every day for 3 days.", "18"),
        ("18<|endoftext|>", "18"),
        ("So the total is **$18**", "18"),
        ("There are 3. So she has eighteen left.", "18"),
        ("At 3:30 on the 2nd day she had 18m² left.", "18"),
        ("She makes 9 and 18 dollars.", None),
        ("The change – 18 dollars.", "18"),
        ("She makes 18", None),
        ("She sells 9 eggs. Then she", None),
        ("Is it 18?", None),
        ("No idea.", None),
        ("", None),
        (" \n ", None),
    ],
)
def test_statements(text: str, answer: str | None) -> None:
    assert extract(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>the answer is 7</think>The answer is 18.", "18"),
        ("<think>#### 7</think>18", "18"),
        ("<Thinking>\n#### 7\n</Thinking>\n\n18", "18"),
        ("<reasoning>\\boxed{7}</reasoning>\\boxed{18}", "18"),
        ("#### 7</think>18", "18"),
        ("<think>a</think>#### 7<think>b</think> #### 18", "18"),
        ("<think>a <think>b</think> #### 18", "18"),
        ("<think>so the answer is 18.", None),
        ("<think>the answer is 18.</think>", None),
        ("#### 18 <think>or", None),
    ],
)
def test_reasoning_is_set_aside(text: str, answer: str | None) -> None:
    assert extract(text) == answer


# Numbers


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", "0"),
        ("-0", "0"),
        ("007", "7"),
        ("18.", "18"),
        ("18.00", "18"),
        (".5", "0.5"),
        ("1,234", "1234"),
        ("1,234.50", "1234.5"),
        ("1,234,567", "1234567"),
        ("1,23,456", "123456"),
        ("1 234 567", "1234567"),
        ("1\u202f234,5", "1234.5"),
        ("1\u00a0234", "1234"),
        ("1'234", "1234"),
        ("1’234", "1234"),
        ("1_234", "1234"),
        (r"1\,234", "1234"),
        ("1{,}234", "1234"),
        ("3,5", "3.5"),
        ("0,125", "0.125"),
        ("1.234,56", "1234.56"),
        ("1.234.567", "1234567"),
        ("1.234", "1.234"),
        ("$1,080.00 a year", "1080"),
        ("18$", "18"),
        ("€18", "18"),
        ("18 €", "18"),
        ("£18", "18"),
        ("¥18", "18"),
        ("₹1,00,000", "100000"),
        ("USD 18", "18"),
        ("18 USD", "18"),
        ("CHF 12'500", "12500"),
        ("US$18", "18"),
        ("50 cents", "50"),
        ("18%", "18"),
        (r"18\%", "18"),
        ("18 percent", "18"),
        ("3/4", "0.75"),
        ("1/3", "1/3"),
        ("2/6", "1/3"),
        ("1 1/2", "1.5"),
        ("½", "0.5"),
        ("1½", "1.5"),
        (r"\frac{3}{4}", "0.75"),
        (r"1\frac{1}{2}", "1.5"),
        (r"\frac34", "0.75"),
        (r"-\tfrac{1}{2}", "-0.5"),
        ("-5", "-5"),
        ("−5", "-5"),
        ("+5", "5"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("minus 5", "-5"),
        ("negative five", "-5"),
        ("(5)", "5"),
        ("1e3", "1000"),
        ("1.2E-1", "0.12"),
        ("1.2 × 10^3", "1200"),
        ("1.2×10³", "1200"),
        ("1.2×10⁻³", "0.0012"),
        (r"1.2\times10^{3}", "1200"),
        ("١٢٣", "123"),
        ("१२३", "123"),
        ("１８", "18"),
        ("eighteen", "18"),
        ("twenty-one", "21"),
        ("Twenty One dollars", "21"),
        ("one hundred and five", "105"),
        ("two thousand three hundred forty", "2340"),
        ("three hundred thousand", "300000"),
        ("zero", "0"),
        ("1.5 million", "1500000"),
        ("2 thousand", "2000"),
        ("3 billion dollars", "3000000000"),
        ("two million", "2000000"),
        ("18 km/h", "18"),
        ("18km", "18"),
        ("18m²", "18"),
        ("18 m^2", "18"),
        ("18 °C", "18"),
        ("100个", "100"),
        # no plain numbers
        ("2k", None),
        ("2x", None),
        ("3:30", None),
        ("3rd", None),
        ("1.2.3", None),
        ("1,2,3", None),
        ("12,34,56", None),
        ("5-10", None),
        ("5 to 10", None),
        ("3/4/2020", None),
        ("1/0", None),
        ("10^3", None),
        ("2π", None),
        (r"2\pi", None),
        ("2 pi", None),
        (r"2\sqrt{2}", None),
        ("(5,3)", None),
        ("3 + 4", None),
        ("18 and 20", None),
        ("five three", None),
        ("apples", None),
        ("", None),
        ("1e99999", None),
        ("9" * 5000, None),
    ],
)
def test_numbers(text: str, number: str | None) -> None:
    assert canonical(text) == number
    if number is not None:
        assert canonical(number) == number


@pytest.mark.parametrize(
    ("response", "answer", "verdict"),
    [
        ("18.00", "18", True),
        ("18", "18 dollars", True),
        ("#### 1,000", "1000", True),
        ("#### 18%", "18", True),
        ("#### 18", "18%", True),
        ("#### 0.18", "18", False),
        ("#### 0.18", "18%", False),
        ("#### 0.33", "1/3", False),
        ("The answer is ≈ 0.333", "1/3", False),
        ("#### 2/6", "1/3", True),
        ("#### 50 cents", "0.50", False),
        ("#### 50 cents", "50", True),
        ("#### 1.2 × 10^3", "1200", True),
        ("#### 2k", "2000", False),
        ("#### 3:30", "3:30", True),
        ("The answer is 3:30 PM.", "3:30 pm", True),
        ("#### 3:30", "3", False),
        ("#### 3:45", "3:30", False),
        (r"\boxed{\text{blue}}", "blue", True),
        (r"\boxed{\text{blue}}", "lube", False),
        (r"\boxed{\text{blue}}", "18", False),
        ("The answer is twenty.", "20", True),
        ("#### 9" + "9" * 5000, "9", None),
    ],
)
def test_verdicts(response: str, answer: str, verdict: bool | None) -> None:
    result = grade(response, answer)
    assert result.correct is verdict
    assert result.parsed is (verdict is not None)


# Expressions


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", True),
        (r"2\sqrt{9}", "6", True),
        (r"2\sqrt{9}", "7", False),
        ("2π", r"2\pi", True),
        ("2 pi", r"2\pi", True),
        ("x+1", "1 + x", True),
        ("x+1", "x+2", False),
        ("10^3", "1000", True),
        ("3 + 4", "7", True),
        ("[0,1)", "[0, 1)", True),
        ("[0,1)", "[0,1]", False),
        (r"\{1,2\}", r"\{2,1\}", True),
        ("(5,3)", "(5, 3)", True),
        ("1,234.0", "1234", True),
        ("blue", "Blue", True),
        ("blue", "lube", False),
        ("3:30", "3:31", False),
        ("x+" * 201 + "x", "202x", False),
    ],
)
def test_equivalence(first: str, second: str, same: bool) -> None:
    assert equivalent(first, second) is same
    assert equivalent(second, first) is same


def test_a_hostile_expression_is_stopped_and_the_next_one_graded() -> None:
    start = time.perf_counter()
    result = grade(TOWER, r"\sqrt{2}")
    assert time.perf_counter() - start < 30
    assert result == Grade(None, TOWER[7:-1], parsed=False)
    assert grade(r"\boxed{2\sqrt{9}}", "6").correct
    assert not equivalent(TOWER[7:-1], "1")


def test_an_expression_that_took_too_long_is_not_tried_again() -> None:
    tower = TOWER[7:-1].replace("16", "17")
    assert same_expression("1+y", tower) is None
    start = time.perf_counter()
    assert same_expression(tower, "x") is None
    assert time.perf_counter() - start < 1
    assert same_expression("1+y", "y+1")  # the other one is not to blame


def test_a_stopped_worker_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expressions, "LOOK", 0.1)
    assert same_expression("x+1", "1+x")
    assert _worker.process
    os.kill(_worker.process.pid, signal.SIGSTOP)
    assert same_expression("x+1", "1+x")


def test_a_worker_that_died_is_replaced() -> None:
    assert equivalent("x+1", "1+x")
    assert _worker.process
    _worker.process.kill()
    _worker.process.wait()
    assert equivalent("x+1", "1+x")


def test_threads_share_the_worker() -> None:
    results: list[bool] = []

    def work(n: int) -> None:
        results.append(equivalent(f"x+{n}", f"{n}+x") and not equivalent(f"x+{n}", f"{n + 1}+x"))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8


def test_a_forked_child_has_a_worker_of_its_own() -> None:
    assert equivalent("x+1", "1+x")
    code = """
        import os
        from workbench.answers import equivalent
        from workbench.answers.expressions import _worker
        assert equivalent("x+1", "1+x")
        ours = _worker.process.pid
        child = os.fork()
        if not child:
            good = equivalent("x+2", "2+x") and _worker.process.pid != ours
            _worker.stop()
            os._exit(0 if good else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert equivalent("x+3", "3+x") and _worker.process.pid == ours
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)


def test_a_script_without_a_main_guard_runs_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from workbench.answers import grade\n"
        "from workbench.answers.expressions import _worker\n"
        "print('ran', grade(r'\\boxed{2\\sqrt{9}}', '6').correct, _worker.process.pid)\n"
    )
    for command in ([str(script)], ["-c", script.read_text()]):
        run = subprocess.run(
            [sys.executable, *command], check=True, capture_output=True, text=True, timeout=60
        )
        assert re.fullmatch(r"ran True \d+\n", run.stdout)
        assert not run.stderr
        assert _gone(int(run.stdout.split()[-1]))


def test_an_interrupt_leaves_no_worker_behind() -> None:
    code = f"""
        from workbench.answers import equivalent, grade
        from workbench.answers.expressions import _worker
        equivalent("x+1", "1+x")
        print(_worker.process.pid, flush=True)
        try:
            grade({TOWER!r}, "x+1")
        except KeyboardInterrupt:
            print(_worker.process, equivalent("x+1", "1+x"), _worker.process.pid, flush=True)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        first = int(process.stdout.readline())
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        nothing, same, second = process.stdout.readline().split()
        assert (nothing, same) == ("None", "True")
        assert process.wait(30) == 0
    assert _gone(first)
    assert _gone(int(second))


def _gone(pid: int) -> bool:
    """Whether a process ends within ten seconds (what waits to be reaped has ended)."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


def test_a_worker_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    _worker.stop()
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(WorkbenchError, match="sympy"):
        equivalent("x+1", "1+x")


# Letters, texts, labels


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(b)", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("**B**", "B"),
        ("B) because it is", "B"),
        ("B: the sky", "B"),
        ("Option B", "B"),
        ("A", "A"),
        ("A. A cat", "A"),
        (r"\boxed{B}", "B"),
        (r"\boxed{\text{B}}", "B"),
        (r"\boxed{b}", "B"),
        ("The answer is (B).", "B"),
        ("The answer is (b).", "B"),
        ("The answer is **B**.", "B"),
        ("The answer is b) the sky.", "B"),
        ("选项A太小，选项C太大，所以答案是B。", "B"),
        ("The answer is option B", "B"),
        ("The answer is A.", "A"),
        ("The answer is A because I say so", "A"),
        ("The answer is not A but B.", "B"),
        ("The answer is definitely not A but B.", "B"),
        ("The answer is not A but actually B.", "B"),
        ("Answer: B", "B"),
        ("Answer: B) the sky", "B"),
        ("#### B", "B"),
        ("The correct option is C.", "C"),
        ("<think>(A) it is</think>(B)", "B"),
        ("The answer is A. No, the answer is B.", "B"),
        ("(A) looks good, but the answer is (B).", "B"),
        ("Option A is wrong. Option B is wrong. So it must be C.", "C"),
        ("I would take D here.", "D"),
        ("(A) is wrong and (C) too. I like (B) best. Definitely (B).", "B"),
        ("B) because (A) is wrong", "B"),
        ("A cat sat", None),
        ("I think a cat sat on it", None),
        ("The answer is A cat", None),
        ("A or B", None),
        ("(A) or (B)", None),
        ("The answer is A or B.", None),
        ("The answer is b", "B"),
        ("The answer is not B.", None),
        ("The answer is B?", None),
        ("It is not B.", None),
        ("I'm sure", None),
        ("(İ)", None),
        ("I, too, am not sure", None),
        ("Because of Bob", None),
        ("K", None),
        ("", None),
    ],
)
def test_letters(text: str, letter: str | None) -> None:
    assert extract(text, "choice") == letter


def test_letters_of_ones_own() -> None:
    assert extract("The answer is Y", "choice", labels=("X", "Y")) == "Y"
    assert extract("The answer is A", "choice", labels=("X", "Y")) is None
    assert extract("(2)", "choice", labels=["1", "2"]) == "2"
    assert grade("(B)", "(b)", "choice").correct is True
    assert grade("(B)", "A", "choice").correct is False


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("True", "True"),
        ("true.", "True"),
        ("**TRUE**, because", "True"),
        ('"False"', "False"),
        ("False - it is not true", "False"),
        ("I think so. Answer: False", "False"),
        ("Let me see. The answer is true.", "True"),
        ("The final answer: **False**.", "False"),
        ("<think>True</think> False", "False"),
        ("True, not False", "True"),
        ("not True", None),
        ("untrue", None),
        ("truely", None),
        ("True-ish", None),
        ("True or False", None),
        ("True/False?", None),
        ("It is true", None),
        ("After all of this the claim is true.", "True"),
        ("The claim is not true.", None),
        ("I cannot say whether it is true.", None),
        ("What is true is not always false.", None),
        ("A true story it is.", None),
        ("The claim is untrue.", None),
        ("", None),
    ],
)
def test_labels(text: str, label: str | None) -> None:
    assert extract(text, "label", labels=[" True", " False"]) == label


def test_labels_are_no_substrings() -> None:
    verdicts = ("CORRECT", "INCORRECT", "not enough", "not")
    for text in ("INCORRECT", "incorrect.", "Verdict: INCORRECT"):
        assert grade(text, "INCORRECT", "label", labels=verdicts).correct is True
        assert grade(text, "correct", "label", labels=verdicts).correct is False
    assert extract("Not enough.", "label", labels=verdicts) == "not enough"


def test_exact_texts() -> None:
    assert grade(" a  b\nc ", "a b c", "exact") == Grade(True, "a b c", parsed=True)
    assert grade("A b c", "a b c", "exact").correct is False
    assert grade("<think>a</think> b", "b", "exact").correct is True
    assert grade("<think>a</think>", "a", "exact").parsed is False
    assert grade("It is\n#### New  York", "New York", "exact").correct is True
    assert grade(r"It is \boxed{\text{New York}}.", "New York", "exact").correct is True
    assert grade("#### New\nYork", "#### New York", "exact").correct is True
    assert grade(" \n", "a", "exact") == Grade(None, None, parsed=False)


# What looks like an answer and is none, what looks like none and is one

NOT_RIGHT: dict[tuple[Style, str], tuple[str, ...]] = {
    ("gsm8k", "2"): (
        r"\boxed{2+?}", r"\boxed{2,?}", "The answer is x = 1 and y = 2.", "#### x=1, y=2",
        "#### two thirds", "#### two and a half", "Die Antwort ist 2 Millionen.",
        "La respuesta es 2 millones.", "The answer is 2 years 3 months.", "#### 2 years 3 months",
        r"\boxed{2\text{ years }3\text{ months}}", "I need 2 more facts.",
    ),
    ("gsm8k", "18"): (
        r"\boxed{18|20}", r"\boxed{\neq 18}", r"\boxed{18_{16}}", "The answer is +/- 18.",
        "The answer is ±18.", "The answer is 18².", r"\boxed{\pm 18}", r"\boxed{18 \neq x}",
        "答案是18万。", "#### 18 dozen eggs", "The answer is 18 lakh.",
        "The answer is 18. No wait, it's 20.", "#### 18\nWait, I made a mistake; it should be 20.",
        "#### 18 is wrong", "The answer cannot be 18.",
        "I first thought the answer is 18, but that is wrong.",
        r"\boxed{18} Hold on, that is wrong: 9 + 11 = 20", "The answer is 18. Oops, I mean 20.",
        "The answer is 18, no, 20.", "The answer is 18? No.", "The answer is at least 18.",
        "The answer is more than 18.", "The answer is less than 18.", "The answer is > 18.",
        "The answer is ≥ 18.", "The answer is over 18.", "The answer is under 18.",
        "The answer is up to 18.", "The answer is at most 18.", "The answer is < 18.",
        "The answer is ≤ 18.", "The answer is no more than 18.", "The answer is fewer than 18.",
        "The answer is above 18.", "The answer is below 18.", r"The answer is $\geq 18.",
        r"The answer is \ge 18.", "The answer is 18 or more.", "The answer is 18+.", "18 or more",
        "18+", "#### 18+", r"\boxed{18+}", r"\boxed{>18}", "#### at least 18", r"\boxed{\geq 18}",
        "The answer is 18 dollars or more.", "The answer is 18~20.", "The answer is 18 through 20.",
        "The answer is 18...20.", "#### 18~20", "#### 18 through 20",
        r"\boxed{18\text{ through }20}", "18~20", "18...20", "18 through 20",
        "The answer is 18…20.", "The answer is 18 remainder 2.", "The answer is 18 squared.",
        "#### 18 remainder 2", "#### 18 squared", "The answer is 18 more than 5, which is 23.",
        "La réponse n'est pas 18.", "Die Antwort ist nicht 18.", "A resposta não é 18.",
        "La risposta non è 18.", "Правильный ответ не 18.", "答案不是18。",
        "答えは18ではありません。", "정답은 18이 아닙니다.", "La respuesta no es 18.",
        "उत्तर १८ नहीं है।", "See page 18.", "It is not 18.", "18 is not the answer.",
        "18 is incorrect.", "<|channel|>analysis<|message|>The answer is 18.",
        "[THINK]the answer is 18.", "16 - 3 - 4 = ",
        "She sells 9. So 9 * 2 = 18 seats are good, and each costs 3 =",
        "The answer is 18. Actually, it's 20.", "#### 18\nActually, that is 20.",
        "#### 18. I made a mistake, it is 20",
    ),
    ("gsm8k", "101"): (
        r"\boxed{101_2}", r"\boxed{101_{2}}",
    ),
    ("gsm8k", "101_3"): (
        r"\boxed{101_2}",
    ),
    ("gsm8k", "0"): (
        r"\boxed{0x12}", "#### 0x12",
    ),
    ("gsm8k", "3"): (
        "#### 3²", r"\boxed{x=2, x=3}", r"\boxed{x_1=2, x_2=3}", r"\boxed{x=2 \quad x=3}",
        r"\boxed{x=2,\; y=3}", r"\boxed{x=3±1}", r"\boxed{x=2 \text{ and } y=3}",
        "#### three-fourths", "#### three point five", "#### 3 dozen", "#### $3 M", "#### 3 ± 1",
        "#### >3", "#### 3 x", "答案是3億円です。", "The answer is 3 out of 4.",
        "I cannot solve this with 3 unknowns.", "It's impossible to tell from these 3 numbers.",
        "Step 3.", "This is step 3.", r"\boxed{x \ge 3}", r"\boxed{x<3}", "#### 3 < x",
        r"\boxed{3!}",
    ),
    ("gsm8k", "10"): (
        "The answer is 10³.",
    ),
    ("gsm8k", "1"): (
        r"\boxed{\sum_{k=1}^{n} k}", r"\boxed{\prod_{k=1}^{5} k}", "#### one half", "정답: 1만 8천",
        "The answer is 1 in 6.", "The answer is 1 out of 6.", "#### 1 in 6",
        r"\boxed{1 \pm \sqrt{2}}",
    ),
    ("gsm8k", "5"): (
        r"\boxed{5!}", "The answer is $5!$.", "#### 5 mod 3", "Ответ: 5 тысяч",
        "The answer is 5'3\".", "#### 5'3\"", "The answer is 5 apples plus 3 pears.",
        "The answer is 5 feet 3 inches.",
    ),
    ("gsm8k", "3.5"): (
        "#### $3.5bn",
    ),
    ("gsm8k", "34"): (
        r"\boxed{3 4}",
    ),
    ("gsm8k", "1820"): (
        r"\boxed{18 20}", "#### 18 20",
    ),
    ("gsm8k", "13"): (
        "The answer is ~~13~~ 14.", "The answer is 13, no, 14.",
    ),
    ("choice", "B"): (
        "The answer is B.\nWait, no: C.", "Some say the answer is B. They are wrong.",
        "The wrong answer is B.", "The incorrect option is B.", "The worst choice is B",
        "I doubt that the answer is B.", "It's not the case that the answer is B.",
        "B can be ruled out", "no B", "Never B", "All except B", "Anything other than B.",
        "B is the least likely.", "Answer: B; D", "Answer: B+D", "Answer: B - D",
        "The answer is B, no, C.", "I don't think the answer is B.", "La respuesta no es B",
        "Die Antwort ist nicht B", "答案不是B", "答えはBではありません。", "정답은 B가 아닙니다.",
        "La réponse n'est pas B", "La risposta non è B", "Правильный ответ не B",
        "B is definitely not the answer.", "B is wrong", "Answer: B, D and E",
        "Answer: B, D\nBecause of it", "Answer: B, D", "Answer: B, D) the sky", "Answer: B; D.",
    ),
    ("choice", "A"): (
        "A. Paris\nB. London\nC. Rome", "A) Paris\nB) London\nC) Rome\n",
    ),
    ("choice", "C"): (
        "Because of vitamin C.", "It causes hepatitis C.",
    ),
    ("label", "True"): (
        "True? No, False.", "I doubt that this is true.", "It is a myth that this is true.",
        "True is not the answer", "True! False!", "The answer is True. No wait, False.",
        "The answer is not True.",
    ),
    ("label", "No"): (
        "No idea.", "No doubt, yes.",
    ),
    ("label", "Yes"): (
        "Yes! No!",
    ),
    ("label", "positive"): (
        "Label: positive vs. negative",
    ),
    ("gsm8k", "36"): (
        "The answer is half of 36.", "The answer is half of the 36 eggs.",
    ),
    ("gsm8k", "9"): (
        "The answer is twice 9.", "The answer is the sum of 9 and 9.", "#### twice 9",
        "The answer is the product of 9 and 9.", "The answer is the average of 9 and 9.",
    ),
    ("gsm8k", "16"): (
        "The answer is the square root of 16.",
    ),
    ("gsm8k", "7"): (
        "This is question 7.",
    ),
    ("gsm8k", "10000"): (
        "정답: 1만 8천",
    ),
    ("gsm8k", "180000"): (
        "18万5000",
    ),
}  # fmt: skip
"""Responses that a careful reader would not call right for the answer."""
RIGHT: dict[tuple[Style, str], tuple[str, ...]] = {
    ("gsm8k", "25"): (
        "The answer is 5².",
    ),
    ("gsm8k", "8"): (
        r"\boxed{2³}",
    ),
    ("gsm8k", "x²"): (
        r"\boxed{x^2}",
    ),
    ("gsm8k", r"3\sqrt{2}"): (
        r"\boxed{3√2}",
    ),
    ("gsm8k", "4"): (
        "The answer is √16.",
    ),
    ("gsm8k", "101_2"): (
        r"\boxed{101_2}", r"\boxed{101_{2}}",
    ),
    ("gsm8k", "18"): (
        r"\boxed{18 = x}", r"\boxed{x=18}", r"\boxed{f(2) = 18}", r"\boxed{a_3 = 18}",
        r"\boxed{P(A) = 18}", r"\boxed{9 \times 2 = 18}", r"\boxed{x = 9 \cdot 2 = 18}",
        r"\boxed{\text{Total} = 18}", r"\boxed{A = l w = 18}", r"\boxed{x_{1} = 18}",
        r"\boxed{\theta = 18^\circ}", "#### 18 = x",
        "The answer is 18. Wait, let me check: 9 * 2 = 18. Yes.",
        "#### 18\nWait, is that right? Yes, it is.", "The answer is 18. That is not a lot.",
        "The answer is 18. This is not 20, as some think.", "The answer is 18! No doubt about it.",
        "#### 18\nNote that it should be checked.", "I'm not sure but the answer is 18.",
        "The answer is 18, since no one eats 2.", "9*2=18", "x=18", "Let's see. 9*2=18",
        "उत्तर १८ है।", "<|channel|>analysis<|message|>#### 7<|end|><|channel|>final<|message|>18",
        "[THINK]the answer is 7[/THINK]18",
        "<|channel|>final<|message|>The answer is 18.<|return|>",
        "So 18 students do not play football.", "So there are 18 left, which is not many.",
        "The answer is 18 in total.", "The answer is 18 out of the whole class.",
        "So he has 18 dollars and no debts.", "Half of them is 18.", "The sum of their ages is 18.",
        "The answer is a total of 18.", "The answer is 18 dollars more.",
        "She has 18 dollars more than Bob.", "So she earns twice as much: 18 dollars.",
        "The answer is 18 after 3 days.", "Answer: 18 (not 20)", "The answer is 18, not 20.",
        "No, she has 18 dollars.", "#### 18 more eggs", "The answer is just under half: 18.",
        "The answer is over there: 18", "When she is done she has 18 dollars.", "#### 18 over",
        "#### 18 up", "She needs 18 more dollars.", "#### 18 quarters",
        "The answer is 18 dollars each for 3 days.", "Answer: **18!**", "18!", "#### 18!",
        "The answer is 18 dollars (or 1800 cents).", "So she has 18 dollars left over.",
        "There are 18 fewer apples.", "He ran for 18 miles.", "The team scored 18 points.",
        "In total, 18 more than Bob had.", "So Bob is 18 years old.",
        "That leaves 18 for the third group.", "So, 18 is the answer.", "18 is the correct answer.",
        "Hence 18 is right.", "#### 18 is the answer", "The answer is 18 = 9 * 2.",
        "She will need 18 eggs.", "Each gets 18!", r"The answer is $18$ since $9 \cdot 2 = 18$.",
        "Answer: 18 and that is it.", "The answer is 18 minutes.", "The answer is 18 miles.",
        "The answer is 18 M&Ms.", "The answer is 18 mice.", "The answer is 18, i.e. 9 + 9.",
        "The answer is 18 in all.", "The answer is 18 in the first week.",
        "The answer is 18 x-rays", "The answer is 18 a day.",
        "The answer is 18.\n\nWait time is 3 minutes per ride.",
        "The answer is 18. Sorry for the long text.",
        "#### 18\n\nI made this with 3 steps: first 4, then 5, then 18.",
        "The answer is 18.\nSome forget that 2 are broken, which is wrong.",
        "The answer is 18, which is not wrong.",
        "The answer is 18, and this is not so hard as it seems to the 3 boys.",
        "The answer is 18. No 2 answers are possible.", "The answer is 18 (no, really)",
        "The answer is 18. I made 3 checks.", "The answer is 18. Actually, 3 of them are red.",
        "The answer is 18 in 2010.", "She sells an average of 18 eggs.",
        "That is a difference of 18 dollars.", "**Answer:**\n\n> 18 dollars",
        "She can fit a maximum of 18 boxes.", "She needs at least 18 boxes.",
        "He can buy up to 18 apples.",
    ),
    ("gsm8k", "x=2, x=3"): (
        r"\boxed{x=2, x=3}",
    ),
    ("gsm8k", "1234"): (
        r"\boxed{1 234}", r"\boxed{1\,234}", r"\boxed{1{,}234}",
    ),
    ("gsm8k", "14"): (
        "The answer is ~~13~~ 14.",
    ),
    ("choice", "B"): (
        "The answer is B. A is wrong because of C. D is incorrect.", "Answer: B - the sky",
        "Answer: B; it is the sky.", "B. London\nA. is wrong, it is not",
        "The answer is B. Wait, let me check. Yes, B.", "There is no doubt: B.",
        "Answer: B - A cat", "The answer is B. This is correct.",
        "The answer is B.\n\nA: This is incorrect because of x.\nC: This is wrong.",
        "The best choice is B.", "B. London", "I choose B.", "The answer is B, A is wrong.",
        "B. This is the best one.\nC. no", "A is wrong. B is right.", "The answer is B – the sky.",
        "B is correct", "It must be B.", "The answer is B, as C is not.",
        "The answer is B (not C).", "Answer: B. D is wrong",
        "The correct choice is B, because A and C are not.", "Option B", "**B** - London",
        "The answer is B - because it is.", "I'd go with B.",
        "The best option is B: at least it is right.",
        "Therefore B, since there is no other option.", "B; C is wrong",
    ),
    ("label", "False"): (
        "True? No, False.", "False. The claim is not true.", "False. True would need 3.",
        "The claim is false.", "This is not true. The answer is False.", "No doubt, this is false.",
    ),
    ("label", "Yes"): (
        "Yes! It is.", "Yes. No further questions are needed",
    ),
    ("label", "No"): (
        "No, it is not.", "No.",
    ),
    ("label", "positive"): (
        "Sentiment: positive", "**Sentiment:** Positive",
    ),
    ("gsm8k", "23"): (
        "The answer is 18 more than 5, which is 23.",
    ),
    ("gsm8k", r"2\pi r"): (
        r"\boxed{2πr}",
    ),
    ("gsm8k", "6x^2"): (
        r"\boxed{6x²}", "The answer is 6x².",
    ),
    ("gsm8k", "x = 5"): (
        r"\boxed{5}", "#### x = 5", r"\boxed{x=5}",
    ),
    ("gsm8k", "5"): (
        r"\boxed{y = 5}", r"\boxed{y = \frac{10}{2}}",
    ),
    ("gsm8k", r"(-\infty, 3)"): (
        r"\boxed{x < 3}", r"\boxed{(-\infty,3)}",
    ),
    ("gsm8k", "3"): (
        r"\boxed{|-3|}", r"\boxed{\lfloor 3.5 \rfloor}", r"\boxed{\log_2 8}", r"\boxed{\sqrt 9}",
        r"\boxed{\dfrac{6}{2}}", r"\boxed{6 \div 2}", r"\boxed{2 + 1}",
        r"\boxed{\frac{6}{2}\text{ cm}}", r"\boxed{3^\circ}", r"\boxed{3°}",
        r"\boxed{3 \text{ cm}^2}", r"\boxed{3\%}",
    ),
    ("gsm8k", "120"): (
        r"\boxed{5!}", "The answer is $5!$.", r"\boxed{5! = 120}",
    ),
    ("gsm8k", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"): (
        r"\boxed{\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}}",
        r"\boxed{\begin{pmatrix}1&2\\3&4\end{pmatrix}}",
    ),
    ("gsm8k", r"1 \pm \sqrt{2}"): (
        r"\boxed{1\pm\sqrt{2}}", r"\boxed{1 ± √2}",
    ),
    ("gsm8k", r"x \ge 3"): (
        r"\boxed{x \geq 3}", r"\boxed{x ≥ 3}",
    ),
    ("choice", "A"): (
        "A) because of x\nC) is dry", "A. Paris\nB is not in France.", "A", "A. Paris",
        "The answer is A.", "A is right.",
    ),
    ("choice", "C"): (
        "Vitamin C is the point, so the answer is C.", "So C.",
    ),
    ("label", "True"): (
        "True", "True. It is not false.", "Yes, this is true.", "It is true.", "True!",
        "The answer is True, no doubt.",
    ),
    ("label", "negative"): (
        "The review is negative.", "Label: negative", "Negative sentiment.",
        "negative, not positive",
    ),
    ("gsm8k", "180000"): (
        "答案是18万。",
    ),
    ("gsm8k", "300000000"): (
        "答案是3億円です。",
    ),
}  # fmt: skip
"""Responses that look like the ones above and are right."""
LABELS = {"True": "True False", "False": "True False", "Yes": "Yes No", "No": "Yes No"}


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("style", ["gsm8k", "choice", "label"])
def test_only_right_answers_are_called_right(style: Style, right: bool) -> None:
    table = RIGHT if right else NOT_RIGHT
    differ = []
    for (of_style, answer), responses in table.items():
        if of_style == style:
            labels = LABELS.get(answer, "positive negative").split() if style == "label" else ()
            verdicts = {one: grade(one, answer, style, labels=labels) for one in responses}
            differ += [one for one in verdicts.items() if (one[1].correct is True) is not right]
    assert differ == []


# What is refused, what is hard


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grade(18, "18"), "response=18 must be a text, not int"),  # type: ignore[arg-type]
        (lambda: grade("18", 18), "answer=18"),  # type: ignore[arg-type]
        (lambda: grade("18", " "), "not empty"),
        (lambda: grade("18", "?"), r"answer='\?' is not a number"),
        (lambda: grade("18", "x" * 401), "short text"),
        (lambda: grade("18", "18", "gsm"), "known: gsm8k, choice, exact, label"),  # type: ignore[arg-type]
        (lambda: extract("18", []), "one of gsm8k, choice"),  # type: ignore[arg-type]
        (lambda: grade("B", "K", "choice"), "'K' is not one of the labels: A, B"),
        (lambda: grade("B", "X", "label", labels=["A", "B"]), "not one of the labels: A, B"),
        (lambda: extract("B", "label"), "needs texts to choose from"),
        (lambda: extract("B", "label", labels=["a", " A"]), "two of them differ only"),
        (lambda: extract("B", "choice", labels=["A", ""]), "needs texts"),
        (lambda: extract("B", "label", labels="AB"), "must be a list of texts"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize("style", ["gsm8k", "choice", "exact", "label"])
@pytest.mark.parametrize(
    "text",
    [
        *("#### ", "####", "((((", "))))", "1,", "9", "answer: ", "the answer is ", "\\boxed{"),
        *("<think>", "</think>", "\\frac{", "one ", "A ", "(A) or ", "**", "= ", "1 ", "0.", "''"),
        *(
            "\n",
            " ",
            "A: ",
            "-",
            "½",
            "１",
            "答案",
            "true ",
            "{",
            "$",
            "a.",
            "answer to ",
            "_",
            "%",
        ),
        *(
            "x=",
            "x=1,",
            "x = 1 and ",
            "no, ",
            "Wait ",
            "√",
            "²",
            "±",
            "B; ",
            "[THINK]",
            "is not ",
            "\nB. ",
        ),
        *("<|channel|>final<|message|>", "answer is 1. No, ", "~~1", "not ", "18 or ", "1 dozen "),
        *("x" * 50 + " ", "The answer is ((((((((", "#### 1 + ", "\\text{", "1'", "<answer>"),
    ],
)
def test_floods_are_fast(text: str, style: Style) -> None:
    labels = ["true", "false"] if style == "label" else ()
    for flood in ((text * 100_000)[:100_000], "The answer is " + (text * 100_000)[:100_000]):
        start = time.process_time()
        extract(flood, style, labels=labels)
        canonical(flood)
        assert time.process_time() - start < 2


def test_a_long_response_keeps_its_end() -> None:
    text = "She adds 3 and 4 again. " * 5000
    assert extract(text + "#### 18") == "18"
    assert extract(text + "So the answer is 18.") == "18"
    assert extract(text + "So she has 18.") == "18"
    assert extract(text + "So it is (B).", "choice") == "B"
    assert extract("The answer is 18. " + text) == "18"


# The data


def _rows(name: str) -> list[dict[str, Any]]:
    path = Path(os.environ["WORKBENCH_DATA"]) / "gsm8k" / name
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@needs_data
@pytest.mark.parametrize("name", ["train", "test"])
def test_every_published_answer_is_accepted(name: str) -> None:
    for row in _rows(f"{name}.jsonl"):
        gold = row["answer"].rpartition("#### ")[2]
        assert grade(row["answer"], gold) == Grade(True, gold.replace(",", ""), parsed=True)


def _solutions() -> list[tuple[str, str, bool]]:
    """Published solutions of two 6B models, the gold number, OpenAI's own verdict."""
    return [
        (row[model]["solution"], row["ground_truth"].rpartition("A: ")[2], row[model]["is_correct"])
        for row in _rows("model_solutions_6b.jsonl")
        for model in ("6b_finetuning", "6b_verification")
    ]


@needs_data
def test_verdicts_on_published_solutions_are_those_published() -> None:
    solutions = _solutions()
    assert len(solutions) == 2638
    differ = [one for one in solutions if bool(grade(one[0], one[1]).correct) is not one[2]]
    assert differ == []


DISTRACTORS = ["The answer is 7? No, wait.\n", "First #### 3.\n", "The answer is 3.\n"]
WRAPPINGS = [
    "#### {}",
    "####{}",
    "#### ${}",
    "#### **{}** dollars",
    "\\boxed{{{}}}",
    "So $\\boxed{{\\${}\\text{{ dollars}}}}$ it is.",
    "So the answer is {} dollars.",
    "**Final answer:** {}",
    "The final answer is ${}$.",
    "Answer: {} km/h",
    "A: {}",
    "So she has {} apples.",
    "Therefore 2 * 9 = {}.",
    "Die Antwort lautet {}.",
]


@needs_data
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_verdicts_survive_another_wrapping(wrapping: str) -> None:
    kept = total = 0
    stated = "So she has" not in wrapping and "Therefore" not in wrapping
    weak = "Answer:" in wrapping or "Antwort" in wrapping or wrapping.startswith("A:")
    for n, (solution, gold, right) in enumerate(_solutions()):
        body, mark, final = solution.rpartition("A: ")
        if not mark or not re.fullmatch(r"-?[\d.,]*\d", final):
            continue
        number = final if n % 2 or not final.isdigit() else f"{int(final):,}"
        earlier = DISTRACTORS[n % 3] if stated and not (weak and n % 3 == 1) else ""
        result = grade(body + earlier + wrapping.format(number), gold)
        kept += result.parsed and result.correct is right
        total += 1
    assert total > 2500
    assert kept >= 0.995 * total, f"{kept} of {total}"
