"""What Ray costs: one replica of the embedded model on a local cluster against the same in process.

Both stay loaded in one run and work in turns, on prompts that neither has seen.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.harness import Measurement, Repeats, differing, judged, ratio, seconds
from workbench import Sampling, open_engine
from workbench.cli.output import say
from workbench.types import Engine

COUNT = 1000
SHORT, LONG = Sampling(max_tokens=4), Sampling(max_tokens=64, ignore_eos=True)
LABELS = ["12", "33", " yes"]
Work = Callable[[Engine, list[str]], object]
WORK: dict[str, Work] = {
    "1,000 answers of 4 tokens": lambda engine, prompts: engine.generate(prompts, SHORT),
    "1,000 answers of 64 tokens": lambda engine, prompts: engine.generate(prompts, LONG),
    "1,000 rows of three labels": lambda engine, prompts: engine.label_logprobs(prompts, LABELS),
}


def measure(repeats: Repeats = 3) -> list[Measurement]:
    """One replica on a local Ray cluster against the engine in process: time, and the answers."""
    say("two engines load …")
    with (
        open_engine(engine="vllm", store=None) as inside,
        open_engine(engine="ray", store=None, replicas=1, cpus_per_replica=1) as replica,
    ):
        rows = []
        for what, work in WORK.items():
            say(what)
            for engine in (inside, replica):
                work(engine, _prompts(-1))  # warm
            taken = []
            for run in range(repeats):
                prompts = _prompts(run)
                both = (inside, replica) if run % 2 else (replica, inside)
                times = {id(one): seconds(lambda: work(one, prompts)) for one in both}  # noqa: B023
                taken.append(times[id(replica)] / times[id(inside)])
            rows.append(ratio(f"{what}: time with Ray over time in process", taken))
        return [*rows, *_exact(inside, replica)]


def _prompts(run: int) -> list[str]:
    return [f"{run}: {number}+{number + run}=" for number in range(COUNT)]


def _exact(inside: Engine, replica: Engine) -> list[Measurement]:
    prompts = _prompts(100)
    texts = [[row.text for row in one.generate(prompts, SHORT)] for one in (inside, replica)]
    scores = [one.label_logprobs(prompts, LABELS).logprobs for one in (inside, replica)]
    apart = float(np.abs(scores[0] - scores[1]).max())
    return [
        judged("different answers", differing(*texts), bound="0"),
        judged("largest difference of a log-probability", apart, bound="≤ 0.001"),
    ]
