"""lm-evaluation-harness in a separate environment: its verdicts and its speed, compared to ours.

Its own GSM8K task (its requests, filters and verdicts) runs on our server with the same prompts
and decoding; both sides are compared item by item. `lmeval_peer.py` is the script that runs there.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.diffusion_server import served
from benchmarks.harness import Measurement, differing, judged, remote_engine
from tools.training.memoriser import pairs
from workbench.cli.output import say
from workbench.errors import InputError
from workbench.evaluation import evaluate
from workbench.serving import Server, serve
from workbench.tasks import GSM8K, WordProblems
from workbench.types import Sampling, Task

SCRIPT = Path(__file__).with_name("lmeval_peer.py")
# On unfamiliar problems the embedded model continues with another one; both sides stop it there.
UNTIL = Sampling(max_tokens=160, stop=("\n\n",))
# The second filter takes the last number as the answer, stated as one or not.
FILTERS = {"strict-match": "0", "flexible-extract": "reported"}


def measure(peers: Path, count: int | None = None) -> list[Measurement]:
    """Word problems and, if its file is available, real GSM8K; all items, or `count` of each.

    Args:
        peers: the environment with lm-evaluation-harness.
        count: items per task.
    """
    say("a server for lm-evaluation-harness starts …")
    with serve(max_num_seqs=256) as server:
        rows = _compared(server, WordProblems(), count, peers)
        try:
            GSM8K().items(1)
        except InputError as error:
            say(f"without GSM8K: {error}")
            return rows
        return rows + _compared(server, GSM8K(), count, peers)


def _compared(server: Server, task: Task, count: int | None, peers: Path) -> list[Measurement]:
    with remote_engine(server.url) as engine:
        ours = evaluate(task, engine, count=count, sampling=UNTIL)
    problems = [
        {"prompt": task.prompt(item), "answer": f"#### {item.answer}"} for item in task.items(count)
    ]
    theirs, version = _answers(peers, f"{server.url}/completions", server.model, UNTIL, problems)
    right = ours.rows["correct"].astype(bool)
    texts = differing(ours.rows["text"], theirs["text"])
    what = f"{task.name}, {len(theirs)} items, lm-eval {version}: texts that differ"
    rows = [judged(what, texts, bound="0")]
    for name, bound in FILTERS.items():
        unlike = ours.rows[right != theirs[name]]
        for _, row in unlike.iterrows():
            say(f"{name} differs on {row['text']!r}, where {row['answer']!r} is right")
        what = f"… right by its {name}: {theirs[name].sum()}, here: {right.sum()}; "
        rows.append(judged(f"{what}verdicts that differ", len(unlike), bound=bound))
    return rows


def _answers(
    peers: Path, url: str, model: str, sampling: Sampling, rows: list[dict[str, Any]]
) -> tuple[pd.DataFrame, str]:
    """The harness's answers to these rows, and its version; as chats if the URL is for chats."""
    until, most = sampling.stop, sampling.max_tokens
    reply = _run(peers, base_url=url, model=model, until=until, max_tokens=most, rows=rows)
    return pd.DataFrame(reply["rows"]), reply["lm_eval"]


def diffusion(peers: Path) -> list[Measurement]:
    """The harness's chats with the diffusion server, against those of the OpenAI client."""
    from openai import OpenAI

    problems = [{"prompt": prompt, "answer": "#### 0"} for prompt, _ in pairs()]
    sampling = Sampling(max_tokens=128, stop=("<|user|>",))
    say("the diffusion server starts …")
    with served(0.0) as (root, _):
        client = OpenAI(base_url=f"{root}/v1", api_key="none")
        model = client.models.list().data[0].id
        chats = [
            client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": row["prompt"]}],
                max_tokens=sampling.max_tokens,
                stop=list(sampling.stop),
                temperature=0,
            )
            for row in problems
        ]
        theirs, version = _answers(peers, f"{root}/v1/chat/completions", model, sampling, problems)
    texts = [chat.choices[0].message.content for chat in chats]
    right = len(texts) - differing(texts, (answer for _, answer in pairs()))
    what = f"diffusion server: {len(texts)} chats of the OpenAI client ({right} right) and of "
    unlike = differing(texts, theirs["text"])
    return [judged(f"{what}lm-eval {version}: texts that differ", unlike, bound="0")]


def harness_speed(
    server: Server, texts: Sequence[str], batch: int, concurrent: int, peers: Path
) -> float:
    """Requests per second of the harness's `local-completions` client, without its start."""
    reply = _run(
        peers,
        base_url=f"{server.url}/completions",
        model=server.model,
        prompts=texts,
        max_tokens=16,
        batch_size=batch,
        num_concurrent=concurrent,
    )
    assert reply["answers"] == len(texts), reply
    return len(texts) / float(reply["seconds"])


def _run(peers: Path, **config: Any) -> dict[str, Any]:
    """The result of the script in the peers' environment."""
    done = subprocess.run(
        [peers / "bin" / "python", SCRIPT],
        input=json.dumps(config),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    reply: dict[str, Any] = json.loads(done.stdout)
    return reply
