"""Run lm-eval's own GSM8K task on other rows: JSON config on stdin, JSON result on stdout.

A script for an environment of its own (`make bench-peers`); nothing here imports it.

Config: base_url (".../v1/completions" or ".../v1/chat/completions"), model, rows (prompt, and
answer with its `#### N`), until, max_tokens. Result: version, and of each row in order text, and
right by each of the task's two filters ("strict-match", "flexible-extract").
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Before lm_eval is imported: no hub, no progress bars, no chatter on stdout.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "LMEVAL_LOG_LEVEL": "ERROR",
}
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import lm_eval
import yaml


def _task(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The task as the harness ships it, with other rows, prompts and ends."""
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


def main() -> None:
    config = json.load(sys.stdin)
    chat = config["base_url"].endswith("/chat/completions")
    with tempfile.TemporaryDirectory() as folder:
        found = lm_eval.simple_evaluate(
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
    for sample in found["samples"]["gsm8k"]:
        row = rows[sample["doc_id"]]
        row["text"] = sample["resps"][0][0]
        row[sample["filter"]] = bool(sample["exact_match"])
    json.dump({"lm_eval": version("lm-eval"), "rows": rows}, sys.stdout)


if __name__ == "__main__":
    main()
