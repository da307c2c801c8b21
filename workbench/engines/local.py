"""What engines in this process share: the model's location, tokens, and identity."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from workbench import values
from workbench.engines.base import BaseEngine, failure
from workbench.engines.chat import (
    Channels,
    ChatOptions,
    RefusedChatError,
    Thinking,
    chat_text,
    is_structured,
    rendered,
    thinking_of,
)
from workbench.engines.checkpoints.folder import check_folder, check_load_format, check_whole
from workbench.engines.identity import variant
from workbench.engines.requests import Request
from workbench.engines.style import EMBEDDED_STYLE, ends_of, style_by_name, style_by_template
from workbench.engines.tokens import (
    LabelTree,
    Node,
    SegmentedPrompt,
    SegmentTokenizer,
    without_second_bos,
)
from workbench.errors import InputError
from workbench.store import Store, digest, folder_digest
from workbench.tiny import DIFFUSION, MODEL
from workbench.types import Completion, EngineInfo, LabelRow, Message, Prompt, PromptStyle

EMBEDDED = "workbench-tiny"  # the embedded model's name in `info`; it opens the model too
EMBEDDED_DIFFUSION = "workbench-tiny-diffusion"
OURS = {EMBEDDED: MODEL, EMBEDDED_DIFFUSION: DIFFUSION}
SMALL = 100 * 2**20  # bytes of weights
MOST_ENDLESS = 3  # endless chats after which the template is no longer tried


class _PromptError(InputError):
    """One prompt is unusable; others may be usable."""


class LocalEngine(BaseEngine):
    """An engine with the model's tokenizer; set the four attributes below before `__init__`."""

    _tokenizer: Any
    _vocabulary: int  # rows of the embedding: token ids must be below
    _chats: ChatOptions
    _weights: str  # of `Source.weights`
    _endless: int = 0  # chats so far for which the template did not end

    def __init__(
        self,
        source: Source,
        store: Store | None,
        commit: str | None,
        *,
        decisive: Mapping[str, Any],
        identity: Mapping[str, Any],
        **about: Any,
    ) -> None:
        """Set the engine up once its model is loaded.

        Args:
            commit: the hub's commit of the loaded model; None if unknown.
            decisive: the options that are `deciding`.
            identity: what affects an answer besides weights, number format and chat template.
            about: further fields of `EngineInfo`.
        """
        self._source = source
        revision = self._weights if source.folder else commit
        shown = revision[:12] if revision else "unknown"
        info = EngineInfo(model=source.shown, revision=shown, **about)
        whole = {
            "weights": [self._weights, revision],
            "dtype": info.dtype,
            "template": digest(getattr(self._tokenizer, "chat_template", None)).hex(),
            **identity,
        }
        name = variant(revision, info.dtype, decisive) if revision else ""
        super().__init__(info, whole, store, name)
        if not revision:
            self._store_nothing(f"the hub's commit of {source.shown} is unknown")

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, from transformers."""
        return self._tokenizer

    @property
    def has_chat(self) -> bool:
        """Whether there is a chat template, the model's or the caller's."""
        return bool(self._chats.chat_template or getattr(self._tokenizer, "chat_template", None))

    def suited_style(self) -> tuple[PromptStyle, str]:
        """See `style.chosen_style`."""
        if not self.has_chat:
            return "completion", "the model has no chat template"
        if self._source.folder in OURS.values():
            return "completion", EMBEDDED_STYLE
        style, why = style_by_name(self._source.shown)
        if style is not None:
            return style, why
        ends = ends_of(self._source.folder, self._source.name)
        return style_by_template(self._tokenizer, self._chats.chat_template, ends)

    @cached_property
    def _segment_tokenizer(self) -> SegmentTokenizer:
        return SegmentTokenizer(self._tokenizer)

    def _tokens(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        if all(isinstance(prompt, SegmentedPrompt) for prompt in prompts):
            return self._segment_tokenizer(cast("Sequence[SegmentedPrompt]", prompts))
        if isinstance(prompts[0], str):
            return self._encoded(cast("Sequence[str]", prompts))
        if not self.has_chat:
            raise InputError(
                f"{Path(self.info.model).name} has no chat template: use texts, or set a template "
                "as chat_template=…, a text or a file"
            )
        return self._encoded(self._chat_texts(prompts), special=False)

    def count_tokens(self, prompts: Sequence[Prompt]) -> tuple[list[int], bool]:
        """Counts by the model's tokenizer; 0 for a prompt that cannot be tokenised."""
        return [0 if isinstance(ids, str) else len(ids) for ids in self._each(prompts)], True

    def _each(self, prompts: Sequence[Prompt]) -> list[list[int] | str]:
        """The tokens of each prompt, or the reason why it has none.

        Raises:
            InputError: chats without a chat template.
        """
        try:
            return [*self._tokens(prompts)]
        except _PromptError as error:
            if len(prompts) == 1:
                return [str(error)]
            return [self._each([prompt])[0] for prompt in prompts]  # one by one, which is slower

    def _encoded(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """Tokens of each text.

        Raises:
            InputError: a text holds a lone surrogate (half a character).
        """
        try:
            rows = self._tokenizer(list(texts), add_special_tokens=special, verbose=False).input_ids
        except TypeError as error:
            for text in texts:
                try:
                    text.encode()
                except UnicodeEncodeError as reason:
                    refusal = f"{text!r:.80} is not valid text: {reason.reason}"
                    raise _PromptError(refusal) from error
            raise
        return without_second_bos(self._tokenizer, texts, rows) if special else list(rows)

    def _chat_texts(self, prompts: Sequence[Prompt]) -> list[str]:
        if self._endless >= MOST_ENDLESS:
            raise _PromptError(f"the chat template of {self.info.model} never ends: it is broken")
        try:
            return rendered(self._chat_text, prompts)
        except TimeoutError as error:
            self._endless += 1
            raise _PromptError(f"the chat template refuses this chat: {error}") from error

    def _chat_text(self, prompt: Prompt) -> str:
        try:
            return chat_text(self._tokenizer, cast("Sequence[Message]", prompt), self._chats)
        except RefusedChatError as error:
            raise _PromptError(str(error)) from error

    @cached_property
    def _thinking(self) -> Thinking | Channels | None:
        return thinking_of(self._tokenizer)

    def _without_thinking(
        self, request: Request, row: Completion, prompt: Sequence[int]
    ) -> Completion:
        """An answer to a chat, with its thinking moved to `reasoning`.

        Structured output begins at the first token: all of it is the answer.
        """
        sampling, marks = request.sampling, self._thinking
        if marks is None or is_structured(sampling) or isinstance(request.prompt, str):
            return row
        if isinstance(marks, Channels):
            return marks.split(row, prompt, self._tokenizer, sampling.stop)
        is_open = self._is_open(marks, request.prompt, prompt)
        return marks.split(row, prompt, self._tokenizer, sampling.stop, is_open=is_open)

    def _is_open(self, marks: Thinking, prompt: Prompt, ids: Sequence[int]) -> bool:
        """Whether a chat ends inside the model's thinking."""
        return marks.start in ids and marks.leaves_open(self._end_of(prompt))

    def _end_of(self, prompt: Prompt) -> str:
        """What a chat's text has after the last message that is not the model's."""
        chat = cast("Sequence[Message]", prompt)
        text = self._chat_text(prompt)
        last = [one["content"] for one in chat if one["role"] != "assistant"][-1:]
        return text.rpartition(last[0].strip())[2] if last and last[0].strip() else text

    def _unfit(self, tokens: Sequence[int] | str, more: int) -> str | None:
        """Why a prompt with these tokens and `more` after them cannot run; None if it can."""
        if isinstance(tokens, str):
            return tokens
        context = self.info.context_length
        if len(tokens) + more > context:
            return (
                f"the prompt has {len(tokens)} tokens and needs room for {more} more, but the "
                f"context of {self.info.model} holds {context}: shorten it or raise max_model_len"
            )
        if max(tokens, default=0) >= self._vocabulary:
            return (
                f"the prompt has token {max(tokens)}, but {self.info.model} has embeddings for "
                f"only {self._vocabulary} tokens: its tokenizer has more than its weights"
            )
        return None

    def _jobs(
        self, requests: Sequence[Request]
    ) -> tuple[list[tuple[Request, list[int]]], list[tuple[Request, Completion]]]:
        """Requests with their tokens, and the failures of those that do not fit."""
        fit, refused = [], []
        tokens = self._each([request.prompt for request in requests])
        for request, ids in zip(requests, tokens, strict=True):
            reason = self._unfit(ids, 1)
            if reason is None and not isinstance(ids, str):
                fit.append((request, ids))
            else:
                refused.append((request, failure(str(reason), _length(ids))))
        return fit, refused

    def _label_jobs(
        self, prompts: Sequence[Prompt], labels: Sequence[str], width: int
    ) -> tuple[LabelTree, list[tuple[int, Node, list[int]]], list[LabelRow]]:
        """The label tree; (prompt's index, node, tokens) to score; rows that do not fit."""
        tree = LabelTree.build(labels, self._encoded(labels, special=False), width)
        fit, refused = self._fitting(prompts, tree)
        jobs = [(i, node, ids + list(node.prefix)) for i, ids in fit.items() for node in tree.nodes]
        return tree, jobs, refused

    def _fitting(
        self, prompts: Sequence[Prompt], tree: LabelTree
    ) -> tuple[dict[int, list[int]], list[LabelRow]]:
        """Tokens by index of prompts with room for the labels; failed rows of the others."""
        fit, refused = {}, []
        for index, ids in enumerate(self._each(prompts)):
            reason = self._unfit(ids, tree.depth)
            if reason is None and not isinstance(ids, str):
                fit[index] = ids
            else:
                refused.append(LabelRow(index, None, _length(ids), error=reason))
        return fit, refused


def _length(tokens: Sequence[int] | str) -> int:
    return 0 if isinstance(tokens, str) else len(tokens)


@dataclass(frozen=True, slots=True)
class Source:
    """A model's location; `name` is what the underlying library loads.

    Attributes:
        folder: its local folder; None for a name on the hub.
        shown: its name for people, which opens the same model again.
    """

    name: str
    folder: Path | None
    shown: str

    @classmethod
    def find(cls, model: str | None, default: str = EMBEDDED) -> Source:
        """Locate `model`; None is the embedded one. A GGUF file is converted once.

        Raises:
            InputError: a missing folder, a folder without a model, or a broken GGUF file.
            WorkbenchError: a GGUF file's folder cannot be written, or the libraries disagree on it.
        """
        model = default if model is None else model
        if model in OURS:
            return cls(str(OURS[model]), OURS[model], model)
        if model.lower().endswith(".gguf") and not (Path(model) / "config.json").exists():
            from workbench.engines.checkpoints.gguf import converted

            file = Path(model).expanduser()
            folder = converted(file)
            return cls(str(folder), folder, str(file.resolve()))
        path = _folder(model)
        name = str(path or model)
        return cls(name, path, name)

    @property
    def small(self) -> bool:
        """Whether it is like the embedded model, and runs best with the same settings."""
        files = list(self.folder.glob("*.safetensors")) if self.folder else []
        return bool(files) and sum(file.stat().st_size for file in files) < SMALL

    def check_causal(self) -> None:
        """Refuse a folder with a masked-diffusion model, for which other engines return nonsense.

        Raises:
            InputError: names the engine for it.
        """
        if self.folder is None:
            return
        config: object = None
        with suppress(OSError, ValueError):  # the loader reports broken files
            config = json.loads((self.folder / "config.json").read_text("utf-8"))
        kind = config if isinstance(config, dict) else {}
        if kind.get("is_causal") is False or kind.get("model_type") == "llada":
            raise InputError(
                f'model {self.shown!r} is a masked-diffusion model: use engine="diffusion"'
            )

    def check(
        self, options: Mapping[str, object], *, tokenizer: bool = True, whole: bool = False
    ) -> None:
        """Refuse a folder that is broken or unsafe to load, before a library reads it.

        Args:
            options: the engine's; `load_format` and `trust_remote_code` matter.
            tokenizer: whether the folder must have a tokenizer.
            whole: whether to check each tensor too, as vLLM does not.

        Raises:
            InputError: names the folder and what is wrong with it.
        """
        values.flag("trust_remote_code", options.get("trust_remote_code", False))
        form = options.get("load_format") or "auto"
        check_load_format(form)
        if self.folder is not None and (self.folder / "config.json").is_file():
            tokenizer = tokenizer and not options.get("trust_remote_code")
            check_folder(self.folder, load_format=form, tokenizer=tokenizer)
            if whole:
                check_whole(self.folder, form)

    def weights(self) -> str:
        """The identity of its weights: a digest of the folder, or the hub's name."""
        return folder_digest(self.folder) if self.folder else self.name


def _folder(name: str) -> Path | None:
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise InputError(f"model folder {name!r} has no config.json: not a Hugging Face model")
        return path.resolve()
    if path.exists() or path.is_absolute() or name.startswith(("./", "../", "~")):
        raise InputError(f"model folder {name!r} does not exist")
    return None


def check_options(options: Iterable[str], known: Iterable[str], engine: str) -> None:
    """Refuse an option that the engine does not have.

    Raises:
        InputError: names it and the nearest known one.
    """
    names = list(known)
    for name in options:
        if name not in names:
            hint = values.near(name, names) or f". Known: {', '.join(sorted(names))}"
            raise InputError(f"unknown option {name!r} for the {engine} engine{hint}")
