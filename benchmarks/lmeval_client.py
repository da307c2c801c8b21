"""Time lm-eval's `local-completions` client: JSON config on stdin, JSON result on stdout.

A script for an environment of its own (`make bench-peers`); nothing here imports it.

Config: base_url (".../v1/completions"), model, prompts, max_tokens (16), num_concurrent (64),
batch_size (1), repeats (1), ignore_eos (true), warm_up (16), return_texts (false),
gen_kwargs ({}: more fields, which lm-eval puts into each request as they are).
A key for the server goes into the environment variable OPENAI_API_KEY.

Result: seconds and cpu_seconds (of this process) of each repeat, of generate_until alone;
answers and empty (how many), the version, and with return_texts the texts of the last repeat.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version
from typing import Any

# Before lm_eval is imported: no hub, no progress bars, no chatter on stdout.
os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "LMEVAL_LOG_LEVEL": "ERROR"}
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI


def _instances(prompts: list[str], config: dict[str, Any]) -> list[Instance]:
    kwargs = {"until": [], "max_gen_toks": config.get("max_tokens", 16), "do_sample": False}
    if config.get("ignore_eos", True):
        kwargs["ignore_eos"] = True
    kwargs |= config.get("gen_kwargs", {})
    return [
        Instance(request_type="generate_until", doc={}, arguments=(prompt, dict(kwargs)), idx=i)
        for i, prompt in enumerate(prompts)
    ]


def main() -> None:
    config = json.load(sys.stdin)
    prompts = config["prompts"]
    client = LocalCompletionsAPI(
        base_url=config["base_url"],
        model=config["model"],
        tokenizer_backend=None,  # texts are sent as they are: no tokenizer, no hub
        tokenized_requests=False,
        num_concurrent=config.get("num_concurrent", 64),
        batch_size=config.get("batch_size", 1),
        max_gen_toks=config.get("max_tokens", 16),
        timeout=config.get("timeout", 600),
    )
    warm = prompts[: config.get("warm_up", 16)]
    if warm:
        client.generate_until(_instances(warm, config), disable_tqdm=True)
    seconds, cpu, answers, texts = [], [], [], []
    for _ in range(config.get("repeats", 1)):
        requests = _instances(prompts, config)
        cpu_start, start = time.process_time(), time.perf_counter()
        texts = client.generate_until(requests, disable_tqdm=True)
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - cpu_start)
        answers.append(len(texts))
    result = {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "answers": answers,
        "empty": sum(not text for text in texts),
        "lm_eval": version("lm-eval"),
    }
    if config.get("return_texts"):
        result["texts"] = texts
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
