"""Accuracy against its promises: grading, agents in batches, what a vote gains, resuming.

The embedded model in vLLM in this process on its own word problems; no store but where resuming is
measured.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

from benchmarks.table import Row, gain_row, ratio_row
from workbench.agents import MajorityVote, SelfRefine, advance
from workbench.agents.program import Agent, Ask, Case, Program
from workbench.answers import grade
from workbench.comparison import compare
from workbench.engines import open_engine
from workbench.engines.vllm import VLLMEngine
from workbench.errors import EngineError, InputError
from workbench.evaluation import Evaluation, evaluate
from workbench.progress import quiet
from workbench.tasks import WordProblems
from workbench.tasks.word_problems import solution, stories

Say = Callable[[str], None]
HOSTILE = r"\boxed{\dfrac{7^{(7^{(7^{(7^7)})}-4)}-7}{18}}"


def measure(parts: Sequence[str], repeats: int, say: Say) -> list[Row]:
    """Run these parts (none: all), in the order of `NAMES`.

    Raises:
        InputError: there is no such part.
    """
    if unknown := sorted({*parts} - {*NAMES}):
        raise InputError(f"part={unknown[0]!r}: give some of {', '.join(NAMES)}")
    chosen = [name for name in NAMES if name in parts or not parts]
    rows = _grading(say) if "grading" in chosen else []
    if any(name in PARTS for name in chosen):
        with VLLMEngine(None, None, "benchmark", {}) as engine:
            for name in filter(PARTS.__contains__, chosen):
                say(f"{name} …")
                rows += PARTS[name](engine, repeats, say)
    return rows


def _grading(say: Say, count: int = 20_000, repeats: int = 5) -> list[Row]:
    """Grades a second on one core, and how long a hostile expression holds up."""
    told = [
        (solution(story, "first"), str(story.answer))
        for story in islice(stories(random.Random("grading"), held_out=True), count)
    ]
    speeds = []
    for _ in range(repeats):
        start = time.process_time()
        right = sum(bool(grade(text, answer).correct) for text, answer in told)
        speeds.append(count / (time.process_time() - start))
        if right != count:
            raise EngineError(f"{count - right} right answers were called wrong")
    speed, (low, high) = statistics.median(speeds), (min(speeds), max(speeds))
    say(f"grading: {speed:,.0f} a second")
    start = time.perf_counter()
    stopped = grade(HOSTILE, r"\frac{1}{2}")
    seconds = time.perf_counter() - start
    next_one = grade(r"\boxed{\frac{2}{4}}", r"\frac{1}{2}")
    good = not stopped.parsed and next_one.correct is True
    what = "answers graded a second on one core, plain numbers (CPU time)"
    return [
        Row(what, speed, "", "≥ 5000", speed >= 5000, low, high, repeats),
        Row("a hostile expression is given up, the next one is graded", seconds, " s", "≤ 4 s",
            good and seconds <= 4),
    ]  # fmt: skip


def _cases(count: int) -> list[Case]:
    task = WordProblems()
    items = task.items(count)
    return [Case(task, item, task.prompt(item), task.sampling) for item in items]


def one_by_one(samples: int, temperature: float) -> Agent:
    """Votes as loops over samples do it: each sample a call of its own."""

    def program(case: Case) -> Program:
        for number in range(samples):
            yield Ask(case.prompt, replace(case.sampling, temperature=temperature, seed=number))
        return ""

    return program


def _votes(engine: VLLMEngine, repeats: int, say: Say, count: int = 24) -> list[Row]:
    """16 samples of each item: all in one batch, and each alone."""
    cases, agent = _cases(count), MajorityVote(16)
    alone = one_by_one(16, agent.temperature)
    what = f"majority_vote with 16 samples, {count} items: one batch / sample by sample"
    return [ratio_row(what, _ratios(engine, cases, agent, alone, repeats, say), 8)]


def _refine(engine: VLLMEngine, repeats: int, say: Say, count: int = 200) -> list[Row]:
    """Critique and revision: all items' programs together, and one item after the other."""
    cases, agent = _cases(count), SelfRefine()
    what = f"self_refine, {count} items: together / one at a time"
    return [ratio_row(what, _ratios(engine, cases, agent, agent, repeats, say), 8)]


def _ratios(  # noqa: PLR0917
    engine: VLLMEngine, cases: list[Case], agent: Agent, alone: Agent, repeats: int, say: Say
) -> list[float]:
    """How many times faster all cases are together than `alone` on each in turn."""
    ratios = []
    for _ in range(repeats):
        with quiet():
            engine.llm.reset_prefix_cache()
            start = time.perf_counter()
            advance(agent, cases, engine)
            together = time.perf_counter() - start
            engine.llm.reset_prefix_cache()
            start = time.perf_counter()
            for case in cases:
                advance(alone, [case], engine)
            apart = time.perf_counter() - start
        ratios.append(apart / together)
        say(f"{together:.1f} s together, {apart:.1f} s apart")
    return ratios


def _gain(engine: VLLMEngine, repeats: int, say: Say, count: int = 1000) -> list[Row]:  # noqa: ARG001
    """What a vote of 16 adds to greedy answers."""
    greedy, voted = (
        evaluate(WordProblems(), engine, agent, count) for agent in ("standard", "majority_vote")
    )
    for report in (greedy, voted):
        say(f"{report.provenance['agent']}: {report.summary[0]}")
    shares = " over ".join(f"{100 * r.summary[0].value:.1f} %" for r in (voted, greedy))
    what = f"word problems, {count} items: majority of 16 over greedy ({shares})"
    return [gain_row(compare(voted, greedy, what), least=0.05)]


CHILD = """
import sys
from benchmarks.accuracy import kept
kept(sys.argv[1])
"""


def kept(store: str, count: int = 40) -> Evaluation:
    """An evaluation of several rounds that goes on from a store."""
    with open_engine(None, "vllm", store=store) as engine:
        return evaluate(WordProblems(), engine, SelfRefine(), count)


def _killed(engine: VLLMEngine, repeats: int, say: Say) -> list[Row]:  # noqa: ARG001
    """`kill -9` at growing shares of the answers, each time run again; then to the end."""
    with tempfile.TemporaryDirectory() as folder:
        whole = kept(str(Path(folder) / "whole.sqlite"))
        broken = Path(folder) / "killed.sqlite"
        total = _answers(Path(folder) / "whole.sqlite")
        ended = [_kill_at(broken, total * share // 4) for share in (1, 2, 3)]
        say(f"killed after {', '.join(map(str, ended))} of {total} answers")
        found = kept(str(broken))
    columns = [c for c in whole.rows.columns if c != "from_store"]
    one, other = (r.rows[columns].astype(str).fillna("") for r in (whole, found))
    differ = int((one != other).any(axis=1).sum())
    shown = ", ".join(map(str, ended))
    what = f"`kill -9` after {shown} of {total} answers of self_refine: rows that differ"
    return [Row(what, differ, "", "0", differ == 0)]


def _kill_at(store: Path, place: int) -> int:
    """Kill an evaluation once so many answers are in its store; returns how many."""
    environment = os.environ | {"WORKBENCH_PROGRESS": "off"}
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(store)], env=environment)
    try:
        while _answers(store) < place:
            if child.poll() is not None:
                raise EngineError(f"the run to be killed ended by itself ({child.returncode})")
            time.sleep(0.002)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    return _answers(store)


def _answers(store: Path) -> int:
    try:
        with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as base:
            return int(base.execute("SELECT COUNT(*) FROM responses").fetchone()[0])
    except sqlite3.OperationalError:  # not there yet
        return 0


PARTS: Mapping[str, Callable[[VLLMEngine, int, Say], list[Row]]] = {
    "votes": _votes, "refine": _refine, "gain": _gain, "killed": _killed,
}  # fmt: skip
"""Those that need the model."""
NAMES = ("grading", *PARTS)
