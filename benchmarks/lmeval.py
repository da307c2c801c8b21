"""lm-evaluation-harness beside ours: its tasks on our engine, its verdicts, and its speed.

`python -m benchmarks lmeval` runs tasks of it in this process, by our model and by its own vLLM
model in turns, over the same loaded `vllm.LLM`, and compares all results item by item.

The rest is for a separate environment (`--peers`): its own GSM8K task (its requests, filters and
verdicts) runs on our server with the same prompts and decoding, and both sides are compared item by
item. `lmeval_peer.py` is the script that runs there.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import yaml

from benchmarks.diffusion_server import served
from benchmarks.harness import (
    Measurement,
    Repeats,
    differing,
    judged,
    ratio,
    ratios,
    remote_engine,
    seconds,
    vllm_engine,
)
from tools.training.memoriser import pairs
from workbench.cli.output import say
from workbench.errors import InputError
from workbench.evaluation import evaluate
from workbench.serving import Server, serve
from workbench.tasks import GSM8K, Options, WordProblems, open_task
from workbench.tiny import MODEL
from workbench.types import Sampling, Task

SCRIPT = Path(__file__).with_name("lmeval_peer.py")
# On unfamiliar problems the embedded model continues with another one; both sides stop it there.
UNTIL = Sampling(max_tokens=160, stop=("\n\n",))
# The second filter takes the last number as the answer, stated as one or not.
FILTERS = {"strict-match": "0", "flexible-extract": "reported"}


CHOICES, PROBLEMS, SHOTS = 300, 200, 5


def measure(repeats: Repeats = 5) -> list[Measurement]:
    """Whole runs of three tasks in this process: seconds by its own vLLM model over ours."""
    os.environ["LMEVAL_LOG_LEVEL"] = "ERROR"
    with vllm_engine(dtype="float32") as engine, tempfile.TemporaryDirectory() as folder:
        import lm_eval
        from lm_eval.tasks import TaskManager

        from workbench.lm_eval import WorkbenchLM

        models = {"theirs": its_vllm(engine.llm), "ours": WorkbenchLM(engine=engine)}
        names = write_tasks(Path(folder))
        manager = TaskManager(include_path=folder, include_defaults=False)

        def run(model: str, task: str) -> Mapping[str, Any]:
            engine.llm.reset_prefix_cache()
            return dict(
                lm_eval.simple_evaluate(
                    model=models[model], tasks=[task], task_manager=manager, batch_size="auto",
                    bootstrap_iters=0,
                )
            )  # fmt: skip

        def here(task: str) -> None:
            engine.llm.reset_prefix_cache()
            evaluate(open_task(f"lm_eval:{folder}/{task}.yaml"), engine)

        rows = []
        for task, (what, least) in names.items():
            results = {model: run(model, task)["samples"][task] for model in models}
            times: dict[str, list[float]] = {name: [] for name in (*models, "evaluate")}
            for _ in range(repeats):
                for model in models:
                    times[model].append(seconds(partial(run, model, task)))
                if task != "passages":
                    times["evaluate"].append(seconds(partial(here, task)))
            rows.append(
                ratio(
                    f"{what}: its vLLM model / ours", ratios(times["theirs"], times["ours"]), least
                )
            )
            if task != "passages":
                both = ratios(times["theirs"], times["evaluate"])
                rows.append(ratio("… its vLLM model / `evaluate` on the same task", both))
            unlike = differing(*(map(judgement, results[model]) for model in models))
            rows.append(judged("… items with another result", unlike, bound="0"))
            if task != "problems":  # which has texts
                farthest = max(map(apart, *(results[model] for model in models)))
                about = "… largest difference of a log-probability"
                rows.append(judged(about, farthest, bound="≤ 1e-4"))
    return rows


def its_vllm(llm: Any) -> Any:
    """Its own model over a `vllm.LLM` that is loaded already."""
    version = importlib.metadata.version
    # vLLM's CPU build has another distribution name, which lm_eval does not look up.
    cpu = patch.object(importlib.metadata, "version", lambda name: version(f"{name}-cpu"))
    with cpu:
        import lm_eval.models.vllm_causallms as module
    with patch.object(module, "LLM", lambda **_: llm):
        return module.VLLM(str(MODEL), dtype="float32")


def judgement(sample: Mapping[str, Any]) -> list[Any]:
    """What a sample says, without its log-probabilities."""
    metrics = [sample[name] for name in sample["metrics"] if not isinstance(sample[name], tuple)]
    texts = [one for row in sample["resps"] for one in row if isinstance(one, str)]
    return [sample["doc_id"], metrics, texts, sample["arguments"]]


def apart(sample: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """The largest difference between two samples' log-probabilities."""
    both = zip(*(_logprobs(one["resps"]) for one in (sample, other)), strict=True)
    return float(max(abs(a - b) for a, b in both))  # an error where nothing is compared


def _logprobs(value: Any) -> list[float]:
    if isinstance(value, list | tuple):
        return [one for part in value for one in _logprobs(part)]
    return [value] if isinstance(value, float) else []


def write_tasks(folder: Path) -> dict[str, tuple[str, float]]:
    """Files of three tasks; what each measures, and the ratio that it must reach."""
    options, problems = Options().items(CHOICES + 50), WordProblems().items(PROBLEMS + 50)
    chosen = [
        {
            "question": one.fields["question"],
            "choices": list(one.fields["options"][:4]),
            "gold": "ABCD".index(one.answer),
        }
        for one in options
    ]
    solved = [
        {"question": one.fields["question"], "answer": one.fields["solution"]} for one in problems
    ]
    passages = [
        {"page": " ".join(row["question"] for row in solved[at :: PROBLEMS // 4])}
        for at in range(40)
    ]
    asked = "Question: {{question}}\nAnswer:"
    shots = {"fewshot_split": "train", "training_split": "train", "num_fewshot": SHOTS}
    _write(folder, "choices", chosen, **shots, output_type="multiple_choice", doc_to_text=asked,
           doc_to_choice="{{choices}}", doc_to_target="{{gold}}")  # fmt: skip
    until = {"until": ["\n\n"], "max_gen_toks": 160, "do_sample": False}
    _write(folder, "problems", solved, **shots, output_type="generate_until", doc_to_text=asked,
           doc_to_target="{{answer}}", generation_kwargs=until)  # fmt: skip
    _write(folder, "passages", passages, output_type="loglikelihood_rolling", doc_to_text="",
           doc_to_target="{{page}}")  # fmt: skip
    return {
        "choices": (f"{CHOICES} questions with 4 choices after {SHOTS} examples", 2),
        "problems": (f"{PROBLEMS} word problems after {SHOTS} examples, generated", 1),
        "passages": ("40 passages, rolling", 0),
    }


def _write(folder: Path, name: str, rows: Sequence[Any], **config: Any) -> None:
    files = {"test": rows[50:], "train": rows[:50]} if "num_fewshot" in config else {"test": rows}
    for split, part in files.items():
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}_{split}.jsonl").write_text(lines)
    paths = {split: str(folder / f"{name}_{split}.jsonl") for split in files}
    config |= {"task": name, "dataset_path": "json", "test_split": "test"}
    config["dataset_kwargs"] = {"data_files": paths, "cache_dir": str(folder / "cache")}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))


def with_peers(peers: Path, count: int | None = None) -> list[Measurement]:
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
