"""Accuracy against its targets: grading, agents in batches, the gain of a vote, resuming.

The embedded model in vLLM in this process, on its own word problems; without a store, except where
resuming is measured.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

from benchmarks import lmeval
from benchmarks.harness import (
    Measurement,
    Parts,
    Peers,
    Repeats,
    gain,
    judged,
    kill_at,
    median,
    ratio,
    run_parts,
    seconds,
    stored,
    vllm_engine,
)
from workbench.agents import MajorityVote, SelfRefine, advance
from workbench.agents.program import Agent, AgentCase, Ask, Program
from workbench.answers import grade
from workbench.cli.output import say
from workbench.comparison import compare
from workbench.engines import open_engine
from workbench.engines.vllm import VLLMEngine
from workbench.errors import EngineError
from workbench.evaluation import Evaluation, evaluate
from workbench.progress import quiet
from workbench.tasks import WordProblems
from workbench.tasks.word_problems import solution, stories

HOSTILE = r"\boxed{\dfrac{7^{(7^{(7^{(7^7)})}-4)}-7}{18}}"


def measure(part: Parts = None, repeats: Repeats = 3, peers: Peers = None) -> list[Measurement]:
    """Grading, agents in batches against loops, a vote's gain, resuming; or against lm-eval."""
    if peers:
        return lmeval.with_peers(peers)
    return run_parts(PARTS, part, vllm_engine, repeats=repeats)


def _grading(count: int = 20_000, rounds: int = 5) -> list[Measurement]:
    """Grades per second on one core, and the seconds that a hostile expression takes."""
    solved = [
        (solution(story, "first"), str(story.answer))
        for story in islice(stories(random.Random("grading"), held_out=True), count)
    ]
    speeds = []
    for _ in range(rounds):
        start = time.process_time()
        right = sum(bool(grade(text, answer).correct) for text, answer in solved)
        speeds.append(count / (time.process_time() - start))
        if right != count:
            raise EngineError(f"{count - right} right answers were called wrong")
    say(f"grading: {statistics.median(speeds):,.0f} per second")
    start = time.perf_counter()
    stopped = grade(HOSTILE, r"\frac{1}{2}")
    taken = time.perf_counter() - start
    next_one = grade(r"\boxed{\frac{2}{4}}", r"\frac{1}{2}")
    good = not stopped.parsed and next_one.correct is True
    what = "answers graded per second on one core, plain numbers (CPU time)"
    hostile = "a hostile expression times out, the next one is graded"
    return [
        median(what, speeds, bound="≥ 5000"),
        judged(hostile, taken, " s", "≤ 4", also=good),
    ]


def _cases(count: int) -> list[AgentCase]:
    task = WordProblems()
    items = task.items(count)
    return [AgentCase(task, item, task.prompt(item), task.sampling) for item in items]


def one_by_one(samples: int, temperature: float) -> Agent:
    """Votes as loops over samples make them: a separate call per sample."""

    def program(case: AgentCase) -> Program:
        for number in range(samples):
            yield Ask(case.prompt, replace(case.sampling, temperature=temperature, seed=number))
        return ""

    return program


def _votes(engine: VLLMEngine, repeats: int, count: int = 24) -> list[Measurement]:
    """16 samples per item: all in one batch, and each alone."""
    cases, agent = _cases(count), MajorityVote(16)
    alone = one_by_one(16, agent.temperature)
    what = f"majority_vote with 16 samples, {count} items: one batch / sample by sample"
    return [ratio(what, _speedups(engine, cases, agent, alone, repeats), 8)]


def _refine(engine: VLLMEngine, repeats: int, count: int = 200) -> list[Measurement]:
    """Critique and revision: all items' programs together, and one item after another."""
    cases, agent = _cases(count), SelfRefine()
    what = f"self_refine, {count} items: together / one at a time"
    return [ratio(what, _speedups(engine, cases, agent, agent, repeats), 8)]


def _speedups(
    engine: VLLMEngine, cases: list[AgentCase], agent: Agent, alone: Agent, repeats: int
) -> list[float]:
    """How many times faster all cases run together than with `alone` on each in turn."""

    def apart() -> None:
        for case in cases:
            advance(alone, [case], engine)

    faster = []
    for _ in range(repeats):
        with quiet():
            engine.llm.reset_prefix_cache()
            together = seconds(lambda: advance(agent, cases, engine))
            engine.llm.reset_prefix_cache()
            slow = seconds(apart)
        faster.append(slow / together)
        say(f"{together:.1f} s together, {slow:.1f} s apart")
    return faster


def _gain(engine: VLLMEngine, count: int = 1000) -> list[Measurement]:
    """The gain of a vote of 16 over greedy answers."""
    greedy, voted = (
        evaluate(WordProblems(), engine, agent, count) for agent in ("standard", "majority_vote")
    )
    for report in (greedy, voted):
        say(f"{report.provenance['agent']}: {report.summary[0]}")
    shares = " over ".join(f"{100 * r.summary[0].value:.1f} %" for r in (voted, greedy))
    what = f"word problems, {count} items: majority of 16 over greedy ({shares})"
    return [gain(compare(voted, greedy, what), least=0.05)]


CHILD = """
import sys
from benchmarks.accuracy import resumable
resumable(sys.argv[1])
"""


def resumable(store: str, count: int = 40) -> Evaluation:
    """An evaluation of several rounds that resumes from a store."""
    with open_engine(None, "vllm", store=store) as engine:
        return evaluate(WordProblems(), engine, SelfRefine(), count)


def _killed() -> list[Measurement]:
    """`kill -9` at growing shares of the answers, and a new run after each; then to the end."""
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder) / "whole.sqlite", Path(folder) / "killed.sqlite"
        expected = resumable(str(whole)).rows
        total = stored(whole)
        places = [total * share // 4 for share in (1, 2, 3)]
        ended = [kill_at(place, lambda: stored(broken), CHILD, broken) for place in places]
        say(f"killed after {', '.join(map(str, ended))} of {total} answers")
        rows = resumable(str(broken)).rows
    columns = [c for c in expected.columns if c != "from_store"]
    one, other = (table[columns].astype(str).fillna("") for table in (expected, rows))
    unlike = int((one != other).any(axis=1).sum())
    shown = ", ".join(map(str, ended))
    what = f"`kill -9` after {shown} of {total} answers of self_refine: rows that differ"
    return [judged(what, unlike, bound="0")]


PARTS: Mapping[str, Callable[..., list[Measurement]]] = {
    "grading": _grading,
    "votes": _votes,
    "refine": _refine,
    "gain": _gain,
    "killed": _killed,
}
