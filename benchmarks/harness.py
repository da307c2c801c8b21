"""Accuracy here and in lm-evaluation-harness: one server, the same prompts and decoding.

The harness runs its own GSM8K task (its requests, its filters, its verdicts) in an environment of
its own; both sides are compared item by item.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.batching import served
from benchmarks.table import Row
from tools.training.memoriser import pairs
from workbench.engines.remote import RemoteEngine
from workbench.errors import InputError
from workbench.evaluation import evaluate
from workbench.serving import Server, serve
from workbench.tasks import GSM8K, WordProblems
from workbench.types import Sampling, Task

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
    asked = [
        {"prompt": task.prompt(item), "answer": f"#### {item.answer}"} for item in task.items(count)
    ]
    return _told(peers, f"{server.url}/completions", server.model, UNTIL, asked)


def _told(
    peers: Path, url: str, model: str, sampling: Sampling, rows: list[dict[str, Any]]
) -> tuple[pd.DataFrame, str]:
    """What the harness got for its rows, and its version; chats where the URL is one of chats."""
    config = {
        "base_url": url, "model": model, "until": sampling.stop,
        "max_tokens": sampling.max_tokens, "rows": rows,
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


def diffusion(peers: Path, say: Say) -> list[Row]:
    """The harness's chats against the diffusion server, and the OpenAI client's own."""
    from openai import OpenAI

    asked = [{"prompt": prompt, "answer": "#### 0"} for prompt, _ in pairs()]
    sampling = Sampling(max_tokens=128, stop=("<|user|>",))
    say("the diffusion server starts …")
    with served(0.0) as (root, _):
        client = OpenAI(base_url=f"{root}/v1", api_key="none")
        model = client.models.list().data[0].id
        mine = [
            client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": row["prompt"]}],
                max_tokens=sampling.max_tokens,
                stop=list(sampling.stop),
                temperature=0,
            )
            for row in asked
        ]
        told, version = _told(peers, f"{root}/v1/chat/completions", model, sampling, asked)
    texts = [one.choices[0].message.content for one in mine]
    right = sum(text == answer for text, (_, answer) in zip(texts, pairs(), strict=True))
    differ = int((told["text"] != pd.Series(texts)).sum())
    what = (
        f"diffusion server: {len(asked)} chats of the OpenAI client ({right} right) and of lm-eval "
    )
    return [Row(f"{what}{version}: texts that differ", differ, "", "0", differ == 0)]
