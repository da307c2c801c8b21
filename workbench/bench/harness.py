"""Accuracy here and in lm-evaluation-harness: one server, the same prompts and decoding.

The harness runs its own GSM8K task (its requests, its filters, its verdicts) in an environment of
its own; both sides are compared item by item.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from workbench.bench.table import Row
from workbench.engines.remote import RemoteEngine
from workbench.errors import InputError
from workbench.evaluation import evaluate
from workbench.serving import Server, serve
from workbench.tasks import GSM8K, WordProblems
from workbench.types import Sampling, Task

__all__ = ["measure"]

SCRIPT = Path(__file__).with_name("lmeval_task.py")
# Off its own kind of problem the embedded model goes on to the next; both stop it there.
UNTIL = Sampling(max_tokens=160, stop=("\n\n",))
# The second takes any last number for the answer, be it stated as one or not.
FILTERS = {"strict-match": "0", "flexible-extract": "reported"}
Say = Callable[[str], None]


def measure(peers: Path, say: Say, count: int | None = None) -> list[Row]:
    """Word problems and, where its file is, real GSM8K; all items, or `count` of each.

    Args:
        peers: the environment that has lm-evaluation-harness.
    """
    say("a server for lm-evaluation-harness starts …")
    with serve(max_num_seqs=256) as server:
        rows = _compared(server, WordProblems(), count, peers, say)
        try:
            GSM8K().items(1)
        except InputError as error:
            say(f"without GSM8K: {error}")
            return rows
        return rows + _compared(server, GSM8K(), count, peers, say)


def _compared(server: Server, task: Task, count: int | None, peers: Path, say: Say) -> list[Row]:
    with RemoteEngine(None, None, "benchmark", {"base_url": server.url}) as engine:
        ours = evaluate(task, engine, count=count, sampling=UNTIL)
    told, version = _harness(server, task, count, peers)
    right = ours.rows["correct"].astype(bool)
    texts = int((ours.rows["text"] != told["text"]).sum())
    what = f"{task.name}, {len(told)} items, lm-eval {version}: texts that differ"
    rows = [Row(what, texts, "", "0", texts == 0)]
    for name, bound in FILTERS.items():
        differ = ours.rows[right != told[name]]
        for _, row in differ.iterrows():
            say(f"{name} differs on {row['text']!r}, where {row['answer']!r} is right")
        what = (
            f"… right by its {name}: {told[name].sum()}, here: {right.sum()}; verdicts that differ"
        )
        rows.append(Row(what, len(differ), "", bound, bound != "0" or differ.empty))
    return rows


def _harness(
    server: Server, task: Task, count: int | None, peers: Path
) -> tuple[pd.DataFrame, str]:
    config = {
        "base_url": f"{server.url}/completions", "model": server.model,
        "until": UNTIL.stop, "max_tokens": UNTIL.max_tokens,
        "rows": [
            {"prompt": task.prompt(item), "answer": f"#### {item.answer}"}
            for item in task.items(count)
        ],
    }  # fmt: skip
    done = subprocess.run(
        [peers / "bin" / "python", SCRIPT],
        input=json.dumps(config),
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    return pd.DataFrame(found["rows"]), found["lm_eval"]
