"""vLLM in this process: prefix caching on, results as they finish, exact label scores.

We step the engine instead of calling `LLM.generate`, so that every finished request can be stored
at once and an interrupt takes effect between steps.
"""

from __future__ import annotations

import ast
import importlib.util
import platform
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

from workbench.engines.base import BaseEngine, failure
from workbench.engines.chat import (
    CHAT,
    ChatOptions,
    Thinking,
    is_prefill,
    thinking_limit,
    thinking_of,
)
from workbench.engines.checkpoints.checks import check_adapter, safe_format
from workbench.engines.cpu import vllm_defaults
from workbench.engines.device import prepare, shown
from workbench.engines.identity import deciding
from workbench.engines.local import LocalEngine, NodeJob
from workbench.engines.requests import Request, misshapen
from workbench.engines.shared_llm import Inbox, SharedLLM, refusals
from workbench.engines.source import Source, check_options
from workbench.engines.tokens import Node, NodeScores
from workbench.errors import EngineUnavailableError, InputError
from workbench.machine import versions
from workbench.messages import images_in
from workbench.progress import fact
from workbench.store import Store, digest, folder_digest
from workbench.tiny import MODEL
from workbench.types import Completion, Prompt, Sampling, TokenLogprob

MAX_LABEL_IDS = 128  # vLLM's limit on logprob_token_ids
WINDOW = 4  # requests in the engine, as a multiple of its batch
OURS = ("adapter", "device", *CHAT)  # options besides vLLM's
TOKENIZING = {
    "reasoning_config", "reasoning_parser", "skip_tokenizer_init", "tokenizer", "tokenizer_mode"
}  # fmt: skip
COUNTS = ("minItems", "maxItems", "minContains", "maxContains", "minProperties", "maxProperties")
MOST_COUNT = 10_000


def unavailable() -> str | None:
    """Why vLLM cannot run in this process; None if it can."""
    if importlib.util.find_spec("vllm") is None:
        return (
            f"vllm is not installed here (Python {platform.python_version()}, {platform.system()})"
        )
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    return None


class VLLMEngine(LocalEngine):
    """`vllm.LLM` behind the `Engine` protocol.

    Args:
        model: hub name or local folder; None is the embedded model.
        store: where answers are kept.
        why: why this engine was chosen, for `info`.
        options: any argument of vLLM's `EngineArgs`; `adapter`: the folder of a LoRA adapter;
            `device`: the device that it must run on ("cpu", "cuda"); the fields of `ChatOptions`.

    Raises:
        InputError: an unknown option or a folder without a model.
        EngineError: the model could not be loaded.
    """

    _label_width = MAX_LABEL_IDS

    def __init__(
        self, model: str | None, store: Store | None, why: str, options: Mapping[str, Any]
    ) -> None:
        _check_options(options)  # report a mistake before the slow import of vLLM
        source = Source.find(model)
        source.check_causal()
        prepare()
        from vllm import __version__ as vllm_version  # the CPU build has another name

        chosen = {name: value for name, value in options.items() if name not in OURS}
        self._chats = ChatOptions.of(options)
        _check_device(options.get("device"))
        adapter, self._lora = _adapter(options.get("adapter"))
        own = {"tokenizer", "skip_tokenizer_init"} & chosen.keys()
        source.check(chosen, tokenizer=not own, whole=True)
        arguments = {**_defaults(small=source.small), **chosen, "model": source.name}
        if adapter is not None:
            arguments["enable_lora"] = True
        arguments |= _thinking_marks(source, chosen)
        form, revision = arguments.get("load_format"), chosen.get("revision")
        arguments["load_format"] = safe_format(source.name, form, revision)
        self._weights = source.weights()
        signature = digest(self._weights, repr(arguments), deciding(chosen)).hex()
        self._shared = SharedLLM.acquire(self, arguments, signature)
        self._tokenizer = self._shared.llm.get_tokenizer()
        config = self._shared.llm.llm_engine.vllm_config
        model_config = config.model_config
        self._vocabulary = int(model_config.get_vocab_size())
        self._sees = bool(model_config.is_multimodal_model)
        self._window: int = WINDOW * config.scheduler_config.max_num_seqs
        decisive = deciding(chosen | self._chats.given | ({"adapter": adapter} if adapter else {}))
        super().__init__(
            source,
            store,
            getattr(model_config.hf_config, "_commit_hash", None),
            decisive=decisive,
            identity={"options": decisive, "context": model_config.max_model_len},
            engine="vllm",
            device=shown(str(config.device_config.device_type)),
            dtype=str(model_config.dtype).removeprefix("torch."),
            context_length=model_config.max_model_len,
            versions={"vllm": vllm_version} | versions("torch", "transformers"),
            why=why,
        )
        if self._shared.note:
            self._note(self._shared.note)

    @property
    def llm(self) -> Any:
        """The `vllm.LLM`, for features that this interface does not cover."""
        return self._shared.llm

    def bare(self, prompts: Sequence[str], sampling: Sampling) -> list[Any]:
        """vLLM's outputs of `LLM.generate` without our code around it, to measure our overhead.

        Raises:
            EngineError: vLLM failed.
        """
        return self._shared.bare(prompts, _params(sampling, sampling.seed), self._lora)

    def _free(self) -> None:
        self._shared.release(self)

    def count_tokens(self, prompts: Sequence[Prompt]) -> tuple[list[int], bool]:
        """Counts by the model's tokenizer; with images, estimates."""
        if self._sees and any(map(images_in, prompts)):
            return BaseEngine.count_tokens(self, prompts)
        return super().count_tokens(prompts)

    def _complete(self, requests: Sequence[Request]) -> Iterator[list[tuple[Request, Completion]]]:
        seen = [one for one in requests if self._sees and images_in(one.prompt)]
        rest = [one for one in requests if not (self._sees and images_in(one.prompt))]
        fit, refused = self._jobs(rest) if rest else ([], [])
        if refused:
            yield refused
        fit.sort(key=lambda job: job[1])  # requests with a shared prefix stay together
        first = requests[0]
        limit = thinking_limit(self._thinking, first.prompt, first.sampling)
        common = _params(first.sampling, None, limit)  # shared if there is no seed
        jobs = (
            (one, ids, common if one.seed is None else _params(one.sampling, one.seed, limit))
            for one, ids in chain(fit, ((one, None) for one in seen))
        )
        for batch in self._run(jobs):
            yield [(request, self._answer(request, output)) for request, output in batch]

    def _send(self, inbox: Inbox, key: Any, ids: list[int] | None, params: Any) -> str:
        """Send token ids; without them, the key is a request with a chat that has images."""
        if ids is not None:
            return self._shared.send(inbox, ids, params, self._lora)
        chat, options = self._chats.messages(key.prompt), self._chats
        prefill, template = is_prefill(chat), options.chat_template or self._tokenizer.chat_template
        return self._shared.send(
            inbox, chat, params, self._lora,
            chat_template=template, chat_template_kwargs=options.chat_template_kwargs,
            add_generation_prompt=not prefill, continue_final_message=prefill,
        )  # fmt: skip

    def _answer(self, request: Request, output: Any) -> Completion:
        if isinstance(output, str):
            return failure(output)
        row = _completion(output, request.sampling)
        return self._without_thinking(request, row, output.prompt_token_ids)

    def _score_nodes(self, jobs: Sequence[NodeJob]) -> Iterator[list[NodeScores]]:
        todo, whole = [*jobs], False
        while todo:
            todo.sort(key=lambda job: (job[2], job[1].given))  # shared prefixes stay together
            make = cache(partial(_node_params, whole=whole))
            sent = ((job, [*job[2], *job[1].given], make(job[1])) for job in todo)
            again: list[NodeJob] = []
            for batch in self._run(sent):
                rows = []
                for job, output in batch:
                    index, node, ids = job
                    cached = output.num_cached_tokens or 0
                    if node.chain and node.given and cached >= len(ids) and not whole:
                        again.append(job)  # the cache held part of the continuation: no scores
                    else:
                        scores, greedy = _node_scores(node, output, len(ids))
                        tokens = len(output.prompt_token_ids)
                        rows.append(NodeScores(index, node, scores, tokens, cached, greedy))
                yield rows
            todo, whole = again, True

    def _run(
        self, jobs: Iterator[tuple[Any, list[int] | None, Any]]
    ) -> Iterator[list[tuple[Any, Any]]]:
        """Send (key, token ids, parameters); yield (key, output or refusal) as they finish."""
        inbox, keys = Inbox(), dict[str, Any]()
        try:
            while True:
                while len(keys) < self._window and (job := next(jobs, None)):
                    key, ids, params = job
                    try:
                        keys[self._send(inbox, key, ids, params)] = key
                    except InputError as refusal:
                        if ids is not None:
                            raise
                        yield [(key, str(refusal))]
                    if self._shared.interrupted:
                        raise KeyboardInterrupt
                if not keys:
                    return
                fact("in the engine", len(keys))
                outputs = self._shared.take(inbox)
                if outputs:
                    yield [(keys.pop(output.request_id), output) for output in outputs]
                if self._shared.interrupted:
                    raise KeyboardInterrupt
        finally:
            self._shared.abort(inbox)
            fact("in the engine", None)


def _params(sampling: Sampling, seed: int | None, limit: int | None = None) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    _check_counts(sampling.json_schema)
    choices = sampling.choices and list(sampling.choices)
    forms = {"choice": choices, "regex": sampling.regex, "json": sampling.json_schema}
    form: dict[str, Any] = {name: value for name, value in forms.items() if value is not None}
    with refusals():
        return SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k or 0,
            min_p=sampling.min_p or 0.0,
            seed=seed,
            ignore_eos=sampling.ignore_eos,
            stop=list(sampling.stop) or None,
            logprobs=sampling.logprobs,
            thinking_token_budget=limit,
            structured_outputs=StructuredOutputsParams(**form) if form else None,
        )


def _check_counts(schema: object) -> None:
    """Refuse counts in a schema for which the grammar compiler would crash this process."""
    if isinstance(schema, Mapping):
        for name, value in schema.items():
            if name in COUNTS and isinstance(value, int) and value > MOST_COUNT:
                raise InputError(f"json_schema: {name}={value} must be at most {MOST_COUNT:,}")
            _check_counts(value)
    elif isinstance(schema, list):
        for value in schema:
            _check_counts(value)


def _node_params(node: Node, *, whole: bool) -> Any:
    """Parameters of a node's request; `whole`: without reading the prefix cache."""
    from vllm import SamplingParams

    more: dict[str, Any] = {}
    if node.chain and node.given:  # vLLM itself would not read the cache for these
        more = {"prompt_logprobs": 0, "flat_logprobs": True, "skip_reading_prefix_cache": whole}
    last = [node.children[-1]] if node.chain else list(node.children)
    return SamplingParams(
        max_tokens=1, temperature=0.0, logprob_token_ids=last, detokenize=False, **more
    )


def _completion(output: Any, sampling: Sampling) -> Completion:
    sample = output.outputs[0]
    prompt_tokens = len(output.prompt_token_ids or ())
    if sample.finish_reason not in ("stop", "length"):
        return failure(f"vLLM ended the request: {sample.finish_reason}", prompt_tokens)
    if reason := misshapen(sampling, sample.text, sample.finish_reason):
        return failure(reason, prompt_tokens, sample.text)
    logprobs = None
    if sample.logprobs is not None:
        logprobs = tuple(
            _token_logprob(token, at, sampling.logprobs or 0)
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


def _token_logprob(token: int, at: Mapping[int, Any], count: int) -> TokenLogprob:
    """The token's log-probability and the likeliest ones; vLLM lists the token among them."""
    top = sorted(((i, entry.logprob) for i, entry in at.items()), key=lambda pair: -pair[1])
    return TokenLogprob(token, at[token].logprob, tuple(top[:count]))


def _node_scores(node: Node, output: Any, start: int) -> tuple[list[float] | str, bool]:
    """Scores of a node's children, and whether each is the likeliest; it begins at `start`."""
    answer = output.outputs[0]
    if not answer.logprobs:
        return f"vLLM ended the request: {answer.finish_reason}", False
    last = answer.logprobs[0]
    if not node.chain:
        return [last[child].logprob for child in node.children], False
    given = [output.prompt_logprobs[at][token] for at, token in enumerate(node.given, start)]
    scores = [one.logprob for one in (*given, last[node.children[-1]])]
    likeliest = answer.token_ids[0] == node.children[-1]  # ranks of requested ids are not ranks
    return scores, likeliest and all(one.rank == 1 for one in given)


def _check_options(options: Mapping[str, Any], engine: str = "vllm", *more: str) -> None:
    if options:
        check_options(options, [*_arguments(), *OURS, *more], engine)
    mode = options.get("logprobs_mode", "raw_logprobs")
    if mode != "raw_logprobs":
        raise InputError(f"logprobs_mode={mode!r} would not return the model's log-probabilities")


def _arguments() -> list[str]:
    """The names of vLLM's arguments, read from its source."""
    found = importlib.util.find_spec("vllm")
    assert found is not None  # `unavailable` has checked it
    assert found.origin is not None
    path = Path(found.origin).parent / "engine" / "arg_utils.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == "EngineArgs":
            fields = [one.target for one in node.body if isinstance(one, ast.AnnAssign)]
            return [one.id for one in fields if isinstance(one, ast.Name)]
    raise EngineUnavailableError(f"{path} has no EngineArgs: install the pinned vLLM")


def _check_device(device: object) -> None:
    """Refuse a device for which this vLLM is not built: a build supports one kind."""
    from vllm.platforms import current_platform

    kind = str(current_platform.device_type)
    if device is not None and device != kind:
        raise EngineUnavailableError(
            f"device={device!r}: vLLM runs on {kind or 'no device'} here; leave `device` out, or "
            "see `workbench info` for what this machine has (which GPU: CUDA_VISIBLE_DEVICES)"
        )


def _defaults(*, small: bool) -> dict[str, Any]:
    from vllm.platforms import current_platform

    defaults = {"enable_prefix_caching": True, "use_tqdm_on_load": False}
    return defaults | vllm_defaults(on_cpu=current_platform.is_cpu(), small=small)


def _thinking_marks(source: Source, options: Mapping[str, Any]) -> dict[str, Any]:
    """What vLLM needs at loading to limit thinking later; {} for a model without marks of it."""
    if options.keys() & TOKENIZING or source.name == str(MODEL):
        return {}
    from transformers import AutoTokenizer
    from vllm.config import ReasoningConfig

    where: dict[str, Any] = {"trust_remote_code": options.get("trust_remote_code", False)}
    where |= {"revision": options["revision"]} if "revision" in options else {}
    try:
        marks = thinking_of(AutoTokenizer.from_pretrained(source.name, **where))
    except Exception:  # noqa: BLE001  # vLLM reads it too, and its message has the reason
        return {}
    if not isinstance(marks, Thinking):
        return {}
    config = ReasoningConfig(reasoning_start_str=marks.opening, reasoning_end_str=marks.closing)
    return {"reasoning_config": config}


def _adapter(folder: object) -> tuple[str | None, Any]:
    """An adapter's digest, and its request, whose name and number depend on its contents."""
    if folder is None:
        return None, None
    from vllm.lora.request import LoRARequest

    path = Path(str(folder)).expanduser()
    if not (path / "adapter_config.json").exists():
        raise InputError(f"adapter {str(folder)!r} has no adapter_config.json")
    check_adapter(path)
    contents = folder_digest(path)  # vLLM caches loaded adapters by both
    return contents, LoRARequest(contents, int(contents[:15], 16) + 1, str(path.resolve()))
