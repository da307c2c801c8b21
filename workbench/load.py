"""What a speed measurement runs: the load, its prompts, and the runners."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from workbench import values
from workbench.engines import open_engine
from workbench.engines.checkpoints.architecture import dummy_model
from workbench.engines.local import LocalEngine
from workbench.engines.remote.fleet import urls_of
from workbench.engines.vllm import VLLMEngine
from workbench.errors import InputError
from workbench.lazy import torch
from workbench.types import Engine, Sampling

BATCHES = (1, 8, 16, 32)
WORDS = 1000  # so many different words are enough for prompts
# Options of both engines.
COMMON = ("device", "dtype", "load_format", "max_model_len", "revision")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The amount of work to measure.

    Attributes:
        requests: number of prompts.
        prompt_tokens, output_tokens: tokens of each prompt, and of each answer.
        shared: share of each prompt, from its beginning, that all prompts have in common.

    Raises:
        InputError: a value is out of its range.
    """

    requests: int = 256
    prompt_tokens: int = 128
    output_tokens: int = 64
    shared: float = 0.0

    def __post_init__(self) -> None:
        for name in ("requests", "prompt_tokens", "output_tokens"):
            values.whole(name, getattr(self, name), 1)
        values.real("shared", self.shared, 0, 1)

    def vary(self, **choices: Sequence[float]) -> list[Load]:
        """This load with one field changed at a time: `vary(prompt_tokens=(32, 512))`."""
        changes: list[dict[str, Any]] = [{name: v} for name, vs in choices.items() for v in vs]
        return [replace(self, **change) for change in changes]


@dataclass(frozen=True, slots=True)
class Runner:
    """A way to run prompts.

    Attributes:
        name: for tables and figures.
        engine: opened with `store=None`.
        batch: prompts per call; 0 is all at once.
        bare: whether to use vLLM's `LLM.generate` directly, without our engine.
    """

    name: str
    engine: Engine
    batch: int = 0
    bare: bool = False

    def __post_init__(self) -> None:
        if getattr(self.engine, "has_store", False):
            raise InputError(f"{self.name} would reuse stored answers: open it with store=None")
        values.whole(f"{self.name}: batch", self.batch, 0)
        size = getattr(self.engine, "batch_size", self.batch)
        if self.batch > size:
            raise InputError(
                f"{self.name}: batch={self.batch}, but the engine has batches of {size} rows: open "
                f"it with batch_size={self.batch}"
            )
        if self.bare and not isinstance(self.engine, VLLMEngine):
            raise InputError(f"{self.name}: only vLLM can run bare, this is {self.engine!r}")

    @property
    def label(self) -> str:
        """Name and batch as one text."""
        return f"{self.name}, {f'batch {self.batch}' if self.batch else 'all at once'}"

    def run(self, prompts: list[str], sampling: Sampling) -> tuple[int, int, int]:
        """Complete the prompts; returns prompt, completion and cached tokens.

        Raises:
            EngineError: some prompts failed.
        """
        if isinstance(self.engine, VLLMEngine):
            self.engine.llm.reset_prefix_cache()
            if self.bare:
                outputs = self.engine.bare(prompts, sampling)
                return (
                    sum(len(output.prompt_token_ids) for output in outputs),
                    sum(len(output.outputs[0].token_ids) for output in outputs),
                    sum(output.num_cached_tokens or 0 for output in outputs),
                )
        before = self.engine.usage
        step = self.batch or len(prompts)
        for at in range(0, len(prompts), step):
            self.engine.generate(prompts[at : at + step], sampling)
        used = self.engine.usage.since(before)
        return used.prompt_tokens, used.completion_tokens, used.cached_tokens or 0


def open_both(
    model: str | None = None,
    architecture: str | None = None,
    batches: Sequence[int] = BATCHES,
    options: Mapping[str, Any] | None = None,
) -> tuple[Engine, Engine | None]:
    """vLLM in this process and, with any `batches`, the transformers baseline (else None).

    Args:
        model: as for `open_engine`; or
        architecture: a preset or file of shapes, to fill with random weights.
        batches: batch sizes of the baseline.
        options: for vLLM; the baseline gets those that it supports.

    Raises:
        InputError: both model and architecture, no such architecture, or unknown options.
        EngineUnavailableError, EngineError: as `open_engine`.
    """
    chosen = dict(options or {})
    if architecture is not None:
        if model is not None:
            raise InputError(f"model={model!r}, architecture={architecture!r}: set only one")
        model = str(dummy_model(architecture))
        chosen = {"load_format": "dummy"} | chosen
    common = {name: value for name, value in chosen.items() if name in COMMON}
    baseline = None
    if batches:  # first, since vLLM then fills its share of memory
        common["batch_size"] = max(batches)
        baseline = open_engine(model, "transformers", store=None, **common)
        chosen = {"dtype": baseline.info.dtype} | _free_share(baseline) | chosen
    try:
        return open_engine(model, "vllm", store=None, **chosen), baseline
    except BaseException:
        if baseline is not None:
            baseline.close()
        raise


def _free_share(baseline: Engine) -> dict[str, float]:
    """vLLM's share of a GPU with the baseline on it: most of the free memory; batches need some."""
    if not baseline.info.device.startswith("cuda"):
        return {}
    free, total = torch.cuda.mem_get_info()
    return {"gpu_memory_utilization": round(0.75 * free / total, 2)}


def open_replicas(
    count: int,
    model: str | None = None,
    base_url: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Engine:
    """An engine over so many replicas, without a store: the first servers of a fleet, or Ray's.

    Args:
        model: as for `open_engine`.
        base_url: URLs with commas, or a folder or file of them; None starts replicas with Ray.
        options: for the engine.

    Raises:
        InputError: the fleet has fewer servers.
        EngineUnavailableError, EngineError: as `open_engine`.
    """
    chosen: dict[str, Any] = {**(options or {}), "store": None}
    if base_url is None:
        return open_engine(model, "ray", replicas=count, **chosen)
    urls = urls_of(base_url)
    if count > len(urls):
        raise InputError(f"replicas={count}, but {base_url} has {len(urls)} servers: start more")
    return open_engine(model, "remote", base_url=urls[:count], **chosen)


def versus(
    engine: Engine, baseline: Engine | None = None, batches: Sequence[int] = BATCHES
) -> list[Runner]:
    """Runners: an engine with all prompts at once, bare `LLM.generate`, the baseline in batches.

    The baseline must have a `batch_size` of at least the largest of `batches`.
    """
    runners = [Runner(engine.info.engine, engine)]
    if isinstance(engine, VLLMEngine):
        runners.append(Runner("bare LLM.generate", engine, bare=True))
    if baseline is not None:
        runners += [Runner(baseline.info.engine, baseline, batch) for batch in batches]
    return runners


def local(engine: Engine) -> LocalEngine:
    """The engine, if it runs in this process.

    Raises:
        InputError: it does not.
    """
    if not isinstance(engine, LocalEngine):
        raise InputError(f"{engine!r} has no tokenizer in this process to make prompts with")
    return engine


def filler(
    tokenizer: Any, count: int, tokens: int, *, shared: float = 0.0, seed: str = ""
) -> list[str]:
    """`count` different texts of `tokens` tokens each: random words, of which a part is shared.

    Args:
        tokenizer: a tokenizer of transformers; the special tokens that it adds are counted.
        shared: share of each text, from its beginning, that is the same in all of them.
        seed: selects the words; texts of different seeds share nothing.

    Raises:
        InputError: the tokenizer has no single-token words, or there are not enough texts.
    """
    words = _words(tokenizer)
    added = len(tokenizer(words[0]).input_ids) - 1
    if tokens <= added:
        raise InputError(f"prompt_tokens={tokens}: must be above {added} special tokens")
    rng = random.Random(f"filler-{seed}")
    common = rng.choices(words, k=round(shared * (tokens - added)))
    free = tokens - added - len(common)
    if len(words) ** free < 4 * count:
        raise InputError(
            f"{count} different prompts of {tokens} tokens, {free} of them not shared: there are "
            "not enough; make them longer or share less"
        )
    texts: dict[str, None] = {}
    while len(texts) < count:
        texts["".join([*common, *rng.choices(words, k=free)])] = None
    if wrong := {len(ids) for ids in tokenizer(list(texts)).input_ids} - {tokens}:
        raise InputError(f"this tokenizer joins words: {tokens} tokens became {wrong.pop()}")
    return list(texts)


@lru_cache(maxsize=4)
def _words(tokenizer: Any) -> list[str]:
    """Words that are one token, with a space before them, in any position."""
    ids = list(range(len(tokenizer)))
    random.Random(0).shuffle(ids)

    def length(text: str) -> int:
        return len(tokenizer(text).input_ids)

    words = []
    for piece in tokenizer.convert_ids_to_tokens(ids):
        word = re.fullmatch("[\u0120\u2581]([a-z]+)", str(piece))  # how a space is written
        if word and length(f" {word[1]}" * 3) == length(f" {word[1]}") + 2:
            words.append(f" {word[1]}")
            if len(words) == WORDS:
                break
    if len(words) < 10:
        raise InputError("this tokenizer has no single-token words: it cannot be used for prompts")
    return words
