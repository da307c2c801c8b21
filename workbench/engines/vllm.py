"""vLLM in this process: prefix caching on, results as they finish, exact label scores.

The engine is stepped by us and not by `LLM.generate`, so that every finished request can be kept
at once and an interrupt ends at a step.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.engines.base import BaseEngine, LabelRow, Request
from workbench.engines.labels import LabelTree, Node
from workbench.engines.resident import Inbox, Resident, prepare
from workbench.errors import InputError
from workbench.store import Store, digest, folder_digest
from workbench.tiny import MODEL as TINY
from workbench.types import Completion, EngineInfo, Prompt, Sampling, TokenLogprob

__all__ = ["VLLMEngine", "unavailable"]

EMBEDDED = "workbench-tiny"  # the name of the embedded model, for `info` and for opening it again
SMALL = 100 * 2**20  # bytes of weights
MAX_LABEL_IDS = 128  # vLLM's limit on logprob_token_ids
WINDOW = 4  # requests in the engine, as a multiple of what it runs at once

# Options that never change an answer, or that a stored answer's key names anyway.
NOT_IN_KEY = frozenset(
    {
        "async_scheduling", "block_size", "compilation_config", "cpu_offload_gb",
        "disable_log_stats", "distributed_executor_backend", "dtype", "enable_chunked_prefill",
        "enable_prefix_caching", "enforce_eager", "gpu_memory_utilization",
        "kv_cache_memory_bytes", "max_logprobs", "max_num_batched_tokens", "max_num_seqs",
        "max_parallel_loading_workers", "pipeline_parallel_size", "revision",
        "tensor_parallel_size", "use_tqdm_on_load",
    }
)  # fmt: skip


def unavailable() -> str | None:
    """Why vLLM cannot run in this process, or None if it can."""
    if importlib.util.find_spec("vllm") is None:
        return (
            f"vllm is not installed here (Python {platform.python_version()}, {platform.system()})"
        )
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    return None


class VLLMEngine(BaseEngine):
    """`vllm.LLM` behind the `Engine` protocol.

    Args:
        model: hub name or local folder; None is the embedded model.
        store: where responses are kept.
        why: how this engine came to be chosen, for `info`.
        options: any argument of vLLM's `EngineArgs`, and `adapter`: the folder of a LoRA adapter.

    Raises:
        InputError: an unknown option or a folder without a model.
        EngineError: the model could not be loaded.
    """

    def __init__(
        self, model: str | None, store: Store | None, why: str, options: Mapping[str, Any]
    ) -> None:
        prepare()
        chosen = dict(options)
        adapter = chosen.pop("adapter", None)
        _check_options(chosen)
        embedded = model in (None, EMBEDDED)
        name = str(TINY) if model is None or embedded else model
        folder = _local_folder(name)
        name = str(folder or name)
        adapted = _adapter_digest(adapter)
        self._lora = _lora(adapter, adapted)
        arguments = {**_defaults(small=embedded or _is_small(folder)), **chosen, "model": name}
        if adapter is not None:
            arguments["enable_lora"] = True
        weights = folder_digest(folder) if folder else name
        self._resident = Resident.acquire(self, arguments, digest(weights, repr(arguments)).hex())
        config = self._resident.llm.llm_engine.vllm_config
        self._tokenizer = self._resident.llm.get_tokenizer()
        self._context: int = config.model_config.max_model_len
        self._window: int = WINDOW * config.scheduler_config.max_num_seqs
        revision = weights if folder else _commit(config) or str(chosen.get("revision"))
        info = EngineInfo(
            engine="vllm",
            model=EMBEDDED if embedded else name,
            revision=revision[:12],
            device=_device(config),
            dtype=str(config.model_config.dtype).removeprefix("torch."),
            context_length=self._context,
            versions=_versions(),
            why=why,
        )
        identity = {
            "weights": [weights, revision],
            "dtype": info.dtype,
            "adapter": adapted,
            "template": digest(getattr(self._tokenizer, "chat_template", None)).hex(),
            "options": {k: repr(v) for k, v in chosen.items() if k not in NOT_IN_KEY},
        }
        super().__init__(info, identity, store)

    @property
    def llm(self) -> Any:
        """The `vllm.LLM` itself, for what this interface does not cover."""
        return self._resident.llm

    def _free(self) -> None:
        self._resident.release(self)

    def _tokens(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        if isinstance(prompts[0], str):
            return list(self._tokenizer(list(prompts), verbose=False).input_ids)
        if not getattr(self._tokenizer, "chat_template", None):
            raise InputError(
                f"{self.info.model} has no chat template: give texts, or pass one as "
                'a file in the model folder ("chat_template.jinja")'
            )
        texts = [self._chat_text(index, prompt) for index, prompt in enumerate(prompts)]
        return list(self._tokenizer(texts, add_special_tokens=False, verbose=False).input_ids)

    def _chat_text(self, index: int, prompt: Prompt) -> str:
        from jinja2 import TemplateError

        try:
            text: str = self._tokenizer.apply_chat_template(
                list(prompt), add_generation_prompt=True, tokenize=False
            )
        except TemplateError as error:
            raise InputError(f"the chat template refuses chat {index}: {error}") from error
        return text

    def _too_long(self, tokens: int, more: int) -> str | None:
        if tokens + more <= self._context:
            return None
        return (
            f"the prompt has {tokens} tokens and needs room for {more} more, the context of "
            f"{self.info.model} holds {self._context}: shorten it or raise max_model_len"
        )

    def _complete(self, requests: Sequence[Request]) -> Iterator[list[tuple[Request, Completion]]]:
        tokens = self._tokens([request.prompt for request in requests])
        refused, order = [], []
        for index, ids in enumerate(tokens):
            reason = self._too_long(len(ids), 1)
            if reason is None:
                order.append(index)
            else:
                refused.append((requests[index], _failure(reason, len(ids))))
        if refused:
            yield refused
        order.sort(key=tokens.__getitem__)  # requests that share a prefix travel together
        shared = _Params()
        jobs = ((i, tokens[i], shared.of(requests[i])) for i in order)
        for batch in self._run(jobs):
            yield [(requests[i], _completion(output)) for i, output in batch]

    def _score(self, prompts: Sequence[Prompt], labels: Sequence[str]) -> Iterator[list[LabelRow]]:
        ids = self._tokenizer(list(labels), add_special_tokens=False).input_ids
        tree = LabelTree.build(labels, ids, MAX_LABEL_IDS)
        tokens = self._tokens(prompts)
        refused, jobs = [], []
        for index, prompt in enumerate(tokens):
            reason = self._too_long(len(prompt), tree.depth)
            if reason is None:
                jobs += [((index, node), prompt + list(node.prefix)) for node in tree.nodes]
            else:
                refused.append(LabelRow(index, None, len(prompt), error=reason))
        if refused:
            yield refused
        jobs.sort(key=lambda job: job[1])
        params = {node: _node_params(node) for node in tree.nodes}
        partial: dict[int, list[tuple[Node, Any]]] = {}
        for batch in self._run((key, ids, params[key[1]]) for key, ids in jobs):
            rows = []
            for (index, node), output in batch:
                parts = partial.setdefault(index, [])
                parts.append((node, output))
                if len(parts) == len(tree.nodes):
                    rows.append(_label_row(index, partial.pop(index), tree))
            yield rows

    def _run(self, jobs: Iterator[tuple[Any, list[int], Any]]) -> Iterator[list[tuple[Any, Any]]]:
        """Send (key, token ids, parameters); yield (key, output) as they end."""
        inbox, keys = Inbox(), dict[str, Any]()
        try:
            while True:
                while len(keys) < self._window and (job := next(jobs, None)):
                    key, ids, params = job
                    keys[self._resident.send(inbox, ids, params, self._lora)] = key
                    if self._resident.interrupted:
                        raise KeyboardInterrupt
                if not keys:
                    return
                outputs = self._resident.take(inbox)
                if outputs:
                    yield [(keys.pop(output.request_id), output) for output in outputs]
                if self._resident.interrupted:
                    raise KeyboardInterrupt
        finally:
            self._resident.abort(inbox)


class _Params:
    """vLLM's sampling parameters, made once where no seed tells them apart."""

    def __init__(self) -> None:
        self._shared: Any = None

    def of(self, request: Request) -> Any:
        if request.seed is not None:
            return _params(request.sampling, request.seed)
        if self._shared is None:
            self._shared = _params(request.sampling, None)
        return self._shared


def _params(sampling: Sampling, seed: int | None) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    structure = None
    if sampling.choices is not None:
        structure = StructuredOutputsParams(choice=list(sampling.choices))
    elif sampling.regex is not None:
        structure = StructuredOutputsParams(regex=sampling.regex)
    elif sampling.json_schema is not None:
        structure = StructuredOutputsParams(json=dict(sampling.json_schema))
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k or 0,
        min_p=sampling.min_p or 0.0,
        seed=seed,
        stop=list(sampling.stop) or None,
        logprobs=sampling.logprobs,
        structured_outputs=structure,
    )


def _node_params(node: Node) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        max_tokens=1, temperature=0.0, logprob_token_ids=list(node.children), detokenize=False
    )


def _completion(output: Any) -> Completion:
    sample = output.outputs[0]
    prompt_tokens = len(output.prompt_token_ids or ())
    if sample.finish_reason not in ("stop", "length"):
        return _failure(f"vLLM ended the request: {sample.finish_reason}", prompt_tokens)
    logprobs = None
    if sample.logprobs is not None:
        logprobs = tuple(
            _token_logprob(token, at)
            for token, at in zip(sample.token_ids, sample.logprobs, strict=True)
        )
    return Completion(
        text=sample.text,
        finish_reason=sample.finish_reason,
        token_ids=tuple(sample.token_ids),
        logprobs=logprobs,
        prompt_tokens=prompt_tokens,
        completion_tokens=len(sample.token_ids),
        cached_tokens=output.num_cached_tokens,
    )


def _token_logprob(token: int, at: Mapping[int, Any]) -> TokenLogprob:
    top = sorted(((i, entry.logprob) for i, entry in at.items()), key=lambda pair: -pair[1])
    return TokenLogprob(token, at[token].logprob, tuple(top))


def _failure(reason: str, prompt_tokens: int) -> Completion:
    return Completion(text="", finish_reason="error", prompt_tokens=prompt_tokens, error=reason)


def _label_row(index: int, parts: list[tuple[Node, Any]], tree: LabelTree) -> LabelRow:
    prompt = sum(len(output.prompt_token_ids) for _, output in parts)
    cached = sum(output.num_cached_tokens or 0 for _, output in parts)
    scores: dict[tuple[tuple[int, ...], int], float] = {}
    for node, output in parts:
        at = output.outputs[0].logprobs
        if not at:
            reason = f"vLLM ended the request: {output.outputs[0].finish_reason}"
            return LabelRow(index, None, prompt, cached, reason)
        for child in node.children:
            scores[node.prefix, child] = at[0][child].logprob
    if any(math.isnan(score) for score in scores.values()):
        return LabelRow(
            index, None, prompt, cached, "the model's log-probabilities are not numbers"
        )
    return LabelRow(index, tree.total(scores), prompt, cached)


def _check_options(options: Mapping[str, Any]) -> None:
    from dataclasses import fields

    from vllm.engine.arg_utils import EngineArgs

    known = [field.name for field in fields(EngineArgs)] + ["adapter"]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"unknown option {name!r} for the vllm engine{hint}")
    mode = options.get("logprobs_mode", "raw_logprobs")
    if mode != "raw_logprobs":
        raise InputError(f"logprobs_mode={mode!r} would not give log-probabilities of the model")


def _is_small(folder: Path | None) -> bool:
    """Whether a local model is of the embedded one's kind, and best run like it."""
    files = list(folder.glob("*.safetensors")) if folder else []
    return bool(files) and sum(file.stat().st_size for file in files) < SMALL


def _defaults(*, small: bool) -> dict[str, Any]:
    from vllm.platforms import current_platform

    defaults: dict[str, Any] = {"enable_prefix_caching": True, "use_tqdm_on_load": False}
    if current_platform.is_cpu():
        # Small blocks share more of a prefix: twice the label scores a second, decoding the same.
        defaults["block_size"] = 32
        # vLLM cannot rewind the generator of a seeded request on a CPU, as it has to after half a
        # prompt: it would stop with "CPU Generator does not use offset". So never half a prompt.
        defaults["enable_chunked_prefill"] = False
    if small:
        defaults["enforce_eager"] = True  # compiling takes longer than a small model runs
        if current_platform.is_cpu():
            defaults |= {"dtype": "float32", "kv_cache_memory_bytes": 2**30}
        else:
            defaults["gpu_memory_utilization"] = 0.2
    return defaults


def _local_folder(name: str) -> Path | None:
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise InputError(f"model folder {name!r} has no config.json: not a Hugging Face model")
        return path.resolve()
    if path.exists() or path.is_absolute() or name.startswith(("./", "../", "~")):
        raise InputError(f"model folder {name!r} does not exist")
    return None


def _adapter_digest(adapter: object) -> str | None:
    if adapter is None:
        return None
    path = Path(str(adapter)).expanduser()
    if not (path / "adapter_config.json").exists():
        raise InputError(f"adapter {str(adapter)!r} has no adapter_config.json")
    return folder_digest(path)


def _lora(adapter: object, adapted: str | None) -> Any:
    """The request for an adapter; name and number follow its contents, as vLLM keeps both."""
    if adapted is None:
        return None
    from vllm.lora.request import LoRARequest

    path = Path(str(adapter)).expanduser().resolve()
    return LoRARequest(adapted, int(adapted[:15], 16) + 1, str(path))


def _commit(config: Any) -> str | None:
    """The commit that a hub name stood for when the model was loaded."""
    commit: str | None = getattr(config.model_config.hf_config, "_commit_hash", None)
    return commit


def _device(config: Any) -> str:
    kind = str(config.device_config.device_type)
    if kind == "cuda":
        import torch

        return f"cuda ({torch.cuda.get_device_name()})"
    return kind


def _versions() -> dict[str, str]:
    import vllm

    names = ("torch", "transformers", "workbench")
    return {"vllm": str(vllm.__version__)} | {n: importlib.metadata.version(n) for n in names}
