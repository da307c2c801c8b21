"""Transformers in this process: the baseline for other engines.

It runs padded batches of `model.generate`, as is usual without an engine. Prompts are sorted by
length to reduce padding. A batch ends when its longest answer ends.
"""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

from workbench import values
from workbench.engines.base import failure
from workbench.engines.chat import CHAT, ChatOptions, Thinking, thinking_limit
from workbench.engines.checkpoints.checks import (
    check_tensors,
    explain_load_error,
    silent,
    weights_size,
)
from workbench.engines.continuations import node_scores
from workbench.engines.cpu import fast_dtype, use_threads
from workbench.engines.decoding import START, BatchSize, Decoding, ThinkingLimit
from workbench.engines.device import (
    building,
    collect,
    context_length,
    find_device,
    memory_ran_out,
    prepare,
    shown,
)
from workbench.engines.identity import deciding
from workbench.engines.local import LocalEngine, NodeJob
from workbench.engines.requests import Request
from workbench.engines.source import Source, check_options
from workbench.engines.tokens import NodeScores
from workbench.errors import EngineError, InputError, WorkbenchError
from workbench.lazy import torch
from workbench.machine import free_memory, versions
from workbench.progress import check
from workbench.store import Store
from workbench.types import Completion

OPTIONS = (
    "attn_implementation", "batch_size", "device", "dtype", "load_format", "max_model_len",
    "revision", "trust_remote_code", *CHAT,
)  # fmt: skip
DECIDING = ("load_format", "attn_implementation", "trust_remote_code")
NODES = 32  # maximum number of continuations of a prompt per batch
SPARE = 0.7  # of the free memory, for an automatic batch

# What models' code raises; our errors pass through.
FAILURES = (
    RuntimeError, MemoryError, ValueError, TypeError, IndexError, KeyError, AttributeError
)  # fmt: skip

Job = TypeVar("Job")
Row = TypeVar("Row")
Answer = tuple[Request, Completion]


def unavailable() -> str | None:
    """Why transformers cannot run a model here; None if it can."""
    for package in ("transformers", "torch"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    return None


class TransformersEngine(LocalEngine):
    """`AutoModelForCausalLM` behind the `Engine` protocol.

    Args:
        model: hub name or local folder; None is the embedded model.
        store: where answers are kept, separate from those of other engines.
        why: why this engine was chosen, for `info`.
        options: `batch_size` (rows, or "auto", the default), `device` ("cuda" if there is a GPU,
            else "cpu"), `dtype`, `attn_implementation`, `revision`, `max_model_len`,
            `load_format="dummy"` (random weights), `trust_remote_code` (True runs Python code of
            the model's folder; without it, no such code runs), the fields of `ChatOptions`.

    Raises:
        InputError: an unknown option or a folder without a model.
        EngineUnavailableError: the requested device does not exist.
        EngineError: the model could not be loaded.
    """

    def __init__(
        self, model: str | None, store: Store | None, why: str, options: Mapping[str, Any]
    ) -> None:
        check_options(options, OPTIONS, "transformers")
        self._chats = ChatOptions.of(options)
        self._size = _batch_size(options.get("batch_size", "auto"))
        self._best = START if self._size == "auto" else self._size
        source = Source.find(model)
        source.check_causal()
        prepare()
        self._device = find_device(options.get("device"))
        source.check(options)
        self._lock = threading.Lock()
        self._tokenizer, self._model = _load(source, self._device, options)
        self._ends = _ends(self._model, self._tokenizer)
        config = self._model.config
        text = config.get_text_config()
        self._vocabulary = int(self._model.get_input_embeddings().num_embeddings)
        longest = int(getattr(text, "max_position_embeddings", 0) or 2**20)
        self._weights = source.weights()
        context = context_length(longest, options.get("max_model_len"))
        decisive = deciding({k: v for k, v in options.items() if k in DECIDING} | self._chats.given)
        super().__init__(
            source,
            store,
            getattr(config, "_commit_hash", None),
            decisive=decisive,
            # A baseline must not reuse answers of what it is compared to.
            identity={"engine": "transformers", "options": decisive, "context": context},
            engine="transformers",
            device=shown(self._device.type),
            dtype=str(self._model.dtype).removeprefix("torch."),
            context_length=context,
            versions=versions("transformers", "torch"),
            why=why,
        )

    @property
    def batch_size(self) -> int:
        """Rows per batch: as requested, or the best that the latest call found."""
        return self._best

    def _free(self) -> None:
        with self._lock:
            self._model = None
        collect(self._device)

    def _complete(self, requests: Sequence[Request]) -> Iterator[list[tuple[Request, Completion]]]:
        sampling, context = requests[0].sampling, self.info.context_length
        decoding = Decoding(self._model, self._tokenizer, self._ends, context, sampling)
        marks = self._thinking
        most = thinking_limit(marks, requests[0].prompt, sampling)
        fit, refused = self._jobs(requests)
        if refused:
            yield refused
        fit.sort(key=lambda job: -len(job[1]))  # similar lengths together, the longest first

        def limit(batch: Sequence[tuple[Request, list[int]]]) -> ThinkingLimit | None:
            if most is None or not isinstance(marks, Thinking):
                return None
            is_open = [self._is_open(marks, one.prompt, ids) for one, ids in batch]
            return ThinkingLimit(marks.start, marks.end, most, is_open)

        def run(batch: Sequence[tuple[Request, list[int]]]) -> tuple[list[Answer], int]:
            seeds = [request.seed for request, _ in batch]
            rows = decoding.run([ids for _, ids in batch], seeds, limit(batch))
            tokens = sum(row.prompt_tokens + row.completion_tokens for row in rows)
            jobs = zip(batch, rows, strict=True)
            return [
                (request, self._without_thinking(request, row, ids)) for (request, ids), row in jobs
            ], tokens

        def fail(job: tuple[Request, list[int]], reason: str) -> list[Answer]:
            return [(job[0], failure(reason, len(job[1])))]

        # If the context length ends an answer, a batch would exceed it: run these one by one.
        tight = [job for job in fit if len(job[1]) + sampling.max_tokens > context]
        rest = fit[len(tight) :]
        for jobs, size in ((tight, 1), (rest, self._size)):
            needs = [self._row_bytes(decoding.width(len(ids))) for _, ids in jobs]
            yield from self._batches(BatchSize("generate", size), jobs, needs, run, fail)

    def _score_nodes(self, jobs: Sequence[NodeJob]) -> Iterator[list[NodeScores]]:
        groups: dict[tuple[int, ...], list[NodeJob]] = {}
        for job in jobs:
            groups.setdefault(tuple(job[2]), []).append(job)
        parts = [g[at : at + NODES] for g in groups.values() for at in range(0, len(g), NODES)]
        parts.sort(key=lambda part: -len(part[0][2]))  # similar lengths, the longest first

        def run(batch: Sequence[list[NodeJob]]) -> tuple[list[NodeScores], int]:
            rows = node_scores(self._model, batch)
            return rows, sum(row.sent for row in rows)

        def fail(part: list[NodeJob], reason: str) -> list[NodeScores]:
            if len(part) == 1:
                index, node, ids = part[0]
                return [NodeScores(index, node, reason, len(ids))]
            halves = [part[: len(part) // 2], part[len(part) // 2 :]]
            one = self._batches(BatchSize("scores", 1), halves, [*map(bytes_of, halves)], run, fail)
            return [row for rows in one for row in rows]

        def bytes_of(part: list[NodeJob]) -> int:
            longest = max(len(node.given) for _, node, _ in part)
            row = self._row_bytes(len(part[0][2]) + longest)
            return len(part) * (row + 8 * longest * self._vocabulary)

        size = BatchSize("scores", self._size)
        yield from self._batches(size, parts, [*map(bytes_of, parts)], run, fail)

    def _batches(
        self,
        size: BatchSize,
        jobs: Sequence[Job],
        needs: Sequence[int],
        run: Callable[[Sequence[Job]], tuple[list[Row], int]],
        fail: Callable[[Job, str], list[Row]],
    ) -> Iterator[list[Row]]:
        """Run the jobs, which need so many bytes each; one that does not fit alone fails alone."""
        at = 0
        while at < len(jobs):
            check()
            rows = min(size.now, len(jobs) - at)
            if size.auto:
                rows = max(1, min(rows, int(self._free_bytes() // needs[at])))
            results: list[Row] | None = None
            try:
                with self._lock:
                    self._check_open()
                    start = time.perf_counter()
                    results, tokens = run(jobs[at : at + rows])
                    seconds = time.perf_counter() - start
            except FAILURES as error:
                reason = _memory_reason(error)
            if results is None:
                collect(self._device)
                if size.out_of_memory(rows):
                    continue
                if rows > 1:
                    raise EngineError(
                        f"out of memory with batch_size={rows} ({reason}); finished rows are in "
                        'the store. Use a smaller batch_size, or "auto"'
                    )
                results = fail(jobs[at], f"out of memory with this prompt alone: {reason}")
            else:
                size.note(rows, tokens, seconds, left=len(jobs) - at - rows)
            at += rows
            yield results
        if size.auto and jobs:
            self._best = size.best
            size.log()

    def _free_bytes(self) -> float:
        if self._device.type == "cuda":
            cached = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
            return SPARE * float(torch.cuda.mem_get_info()[0] + cached)
        return SPARE * free_memory()

    def _row_bytes(self, width: int) -> int:
        """Approximate bytes of a row of `width` tokens: keys and values, mask, and one layer."""
        config = self._model.config.get_text_config()
        heads = getattr(config, "num_attention_heads", None) or 1  # some models have none
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        head = getattr(config, "head_dim", None) or config.hidden_size // heads
        inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
        item = self._model.dtype.itemsize
        cache = 2 * config.num_hidden_layers * kv_heads * head * width
        layer = width * (width + 4 * config.hidden_size + 4 * inner)
        return int(item * (cache + layer) + 16 * config.vocab_size)


def _batch_size(size: object) -> int | Literal["auto"]:
    if size == "auto":
        return "auto"
    try:
        return values.whole("batch_size", size, 1)
    except InputError:
        values.refuse("batch_size", size, '"auto" or a whole number from 1')


def _memory_reason(error: Exception) -> str:
    """The reason if memory ran out; any other error is raised as an `EngineError`."""
    text = " ".join(str(error).split())
    if isinstance(error, WorkbenchError):
        raise error
    if memory_ran_out(error):
        return f"{text:.200}" or type(error).__name__
    raise EngineError(
        f"transformers stopped mid-run: {text:.400}. Finished rows are in the store"
    ) from error


def _load(source: Source, device: Any, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """The tokenizer, and the model on its device."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    form = options.get("load_format", "auto")
    if form not in ("auto", "dummy"):
        raise InputError(f'load_format={form!r}: transformers supports "auto" and "dummy"')
    embedded = source.small and device.type == "cpu"
    dtype = options.get("dtype", "float32" if embedded else "auto")
    # Never omitted: transformers would ask on standard input, and "yes" runs the folder's code.
    where: dict[str, Any] = {"trust_remote_code": options.get("trust_remote_code", False)}
    where |= {"revision": options["revision"]} if "revision" in options else {}
    more = {k: options[k] for k in ("attn_implementation",) if k in options}
    disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.name, **where)
        config = AutoConfig.from_pretrained(source.name, **where)
        if dtype == "auto" and device.type == "cpu":
            use_threads()
            if config.dtype is not None and not hasattr(config, "quantization_config"):
                dtype = _dtype(source, str(config.dtype).removeprefix("torch."))
        if form == "dummy":
            model = _random_model(config, dtype, device, where["trust_remote_code"], more)
        else:
            with building(), silent():
                model, report = AutoModelForCausalLM.from_pretrained(
                    source.name,
                    dtype=dtype,
                    use_safetensors=True,  # a pickle could run anything
                    output_loading_info=True,
                    **where,
                    **more,
                )
            check_tensors(source.name, report, "missing_keys", "mismatched_keys")
            model = model.to(device)
    except WorkbenchError:
        raise
    except Exception as error:  # broken files raise many kinds of errors
        if not memory_ran_out(error):
            raise InputError(explain_load_error(source.name, error)) from error
        raise EngineError(
            f"model {source.name!r} could not be loaded: {_memory_reason(error)}. Close other "
            "kernels, or use a smaller model or dtype"
        ) from error
    return tokenizer, model.eval()


def _random_model(config: Any, dtype: Any, device: Any, trusted: object, more: Any) -> Any:
    """Random weights, the same each time, as stored keys assume."""
    from transformers import AutoModelForCausalLM

    kind = config.dtype if dtype == "auto" else dtype  # None is PyTorch's default
    with building(), device, torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(
            config, dtype=kind, trust_remote_code=trusted, **more
        )


def _dtype(source: Source, own: str) -> str:
    """The fast format on this CPU, if the weights fit into memory in it."""
    fast = fast_dtype(own)
    if fast != own and source.folder and weights_size(source.folder, fast) > free_memory():
        return own
    return fast


def _ends(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end an answer; other decoding defaults of the model's authors are dropped.

    `generate` would apply them (a repetition penalty, an end of text) to requests that do not ask
    for them.
    """
    from transformers import GenerationConfig

    given = model.generation_config.eos_token_id
    ends = [] if given is None else [given] if isinstance(given, int) else list(given)
    model.generation_config = GenerationConfig()
    if tokenizer.eos_token_id is not None:
        ends.append(tokenizer.eos_token_id)  # vLLM ends at both
    return tuple(dict.fromkeys(ends))
