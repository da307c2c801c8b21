"""Run lm-evaluation-harness: JSON config on stdin, JSON result on stdout.

A script for a separate environment (`make bench-peers`); nothing here imports it. It reads the
server's key from the environment variable OPENAI_API_KEY.

With `rows`, its own GSM8K task runs on them. Config: base_url (".../v1/completions" or
".../v1/chat/completions"), model, rows (prompt, and answer with its `#### N`), until, max_tokens.
Result: version, and for each row in order its text, and whether it is right by each of the task's
two filters ("strict-match", "flexible-extract").

With `prompts`, its `local-completions` client is timed. Config: base_url, model, prompts,
max_tokens, num_concurrent, batch_size. Result: version, seconds of `generate_until` alone, and the
number of answers.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Before lm_eval is imported: no hub, no progress bars, no other output on stdout.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "LMEVAL_LOG_LEVEL": "ERROR",
}
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

WARM_UP = 16  # prompts


def evaluate(config: dict[str, Any]) -> dict[str, Any]:
    """Texts and verdicts of the harness's GSM8K task."""
    import lm_eval

    chat = config["base_url"].endswith("/chat/completions")
    with tempfile.TemporaryDirectory() as folder:
        results = lm_eval.simple_evaluate(
            model="local-chat-completions" if chat else "local-completions",
            model_args={
                "base_url": config["base_url"],
                "model": config["model"],
                "tokenizer_backend": None,
                "tokenized_requests": False,
                "num_concurrent": 32,
            },
            apply_chat_template=chat,
            tasks=[_task(config, Path(folder))],
            bootstrap_iters=0,
            verbosity="ERROR",
        )
    rows: list[dict[str, Any]] = [{} for _ in config["rows"]]
    for sample in results["samples"]["gsm8k"]:
        row = rows[sample["doc_id"]]
        row["text"] = sample["resps"][0][0]
        row[sample["filter"]] = bool(sample["exact_match"])
    return {"rows": rows}


def _task(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The task as the harness ships it, with other rows, prompts and stop texts."""
    import lm_eval
    import yaml

    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in config["rows"]))
    shipped = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml"
    task: dict[str, Any] = yaml.safe_load(shipped.read_text())
    for name in ("tag", "dataset_name", "training_split", "fewshot_split"):
        task.pop(name, None)
    return task | {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows)}, "cache_dir": str(folder)},
        "doc_to_text": "{{prompt}}",
        "num_fewshot": 0,
        "generation_kwargs": {
            "until": config["until"],
            "max_gen_toks": config["max_tokens"],
            "do_sample": False,
            "temperature": 0.0,
        },
    }


def speed(config: dict[str, Any]) -> dict[str, Any]:
    """Seconds that the harness's client takes for some prompts."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    client = LocalCompletionsAPI(
        base_url=config["base_url"],
        model=config["model"],
        tokenizer_backend=None,  # texts are sent unchanged: no tokenizer, no hub
        tokenized_requests=False,
        num_concurrent=config["num_concurrent"],
        batch_size=config["batch_size"],
        max_gen_toks=config["max_tokens"],
        timeout=600,
    )
    most = config["max_tokens"]
    kwargs = {"until": [], "max_gen_toks": most, "do_sample": False, "ignore_eos": True}

    requests = [
        Instance(request_type="generate_until", doc={}, arguments=(prompt, {**kwargs}), idx=i)
        for i, prompt in enumerate(config["prompts"])
    ]
    client.generate_until(requests[:WARM_UP], disable_tqdm=True)
    start = time.perf_counter()
    answers = client.generate_until(requests, disable_tqdm=True)
    return {"seconds": time.perf_counter() - start, "answers": len(answers)}


if __name__ == "__main__":
    given = json.load(sys.stdin)
    result = evaluate(given) if "rows" in given else speed(given)
    json.dump({"lm_eval": version("lm-eval"), **result}, sys.stdout)
