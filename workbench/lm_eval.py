"""Our engines as a model of lm-evaluation-harness; importing this module registers it.

    workbench lm-eval --model workbench --model_args model=FOLDER,engine=vllm --tasks arc_easy
    lm_eval.simple_evaluate(model="workbench", model_args={"model": FOLDER}, tasks=["arc_easy"])

Contexts, continuations and windows become tokens as in the harness's own `--model vllm` (0.4.13,
`api/model.py` and `models/vllm_causallms.py`), so that its results agree item by item.
"""

# ruff: noqa: ARG002  # the signatures are the harness's

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from workbench.engines import open_engine
from workbench.engines.chat import ChatOptions, RefusedChatError, chat_text
from workbench.engines.tokens import TokenPrompt
from workbench.errors import EngineUnavailableError, InputError, log
from workbench.machine import install_hint
from workbench.tasks.harness import sampling_of
from workbench.types import Engine, Prompt, Sampling

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import model_registry
    from lm_eval.models.utils import maybe_truncate, postprocess_generated_text
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as missing:
    hint = install_hint("lm-eval")
    raise EngineUnavailableError(f"lm_eval is not installed; install it with {hint}") from missing

Pair = tuple[list[int], list[int]]
Scores = list[tuple[float, bool]]


class ChatJson(str):
    """A chat as JSON, for an engine without a tokenizer, which writes chats by itself."""

    __slots__ = ()


class WorkbenchLM(TemplateLM):
    """A `workbench` engine as a model of the harness.

    A failed request raises an `EngineError` once all others are finished and stored: the same
    command resumes. A server has no `loglikelihood`, an `InputError`.

    Args:
        model, store: as for `open_engine`; `pretrained` is another name for `model`.
        engine: the name of an engine, or an open one.
        max_gen_toks: maximum tokens of an answer, where the task does not say.
        add_bos_token, prefix_token_id, truncation_side, think_end_token: as for its vLLM model.
        seed: makes samples reproducible; None draws new ones in each run.
        batch_size, max_batch_size, device: accepted and unused: an engine batches by itself, and
            the harness's command names a device where there is none.
        options: arguments of the engine.
    """

    def __init__(
        self, model: str | None = None, engine: str | Engine = "auto",
        store: str | Path | None = "default", *, pretrained: str | None = None,
        max_gen_toks: int = 256, add_bos_token: bool | None = None,
        prefix_token_id: int | None = None, truncation_side: str = "left",
        think_end_token: str | None = None, seed: int | None = 1234, batch_size: object = None,
        max_batch_size: object = None, device: object = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        if isinstance(engine, str):
            store = None if store == "none" else store
            engine = open_engine(model or pretrained, engine, store=store, **options)
        self.engine: Any = engine
        self.tokenizer: Any = getattr(engine, "tokenizer", None)
        self.max_length, self.max_gen_toks = engine.info.context_length, max_gen_toks
        self._bos, self._prefix, self._side = add_bos_token, prefix_token_id, truncation_side
        self._think_end, self._seed, self._options = think_end_token, seed, options
        if self.tokenizer is not None and add_bos_token is not None:
            self.tokenizer = copy.deepcopy(self.tokenizer)
            self.tokenizer.add_bos_token = add_bos_token

    @property
    def eot_token_id(self) -> Any:
        """The tokenizer's EOS."""
        return self.tokenizer and self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int | None:
        """The token before a text without context."""
        ids = (self._prefix, self.tokenizer and self.tokenizer.bos_token_id, self.eot_token_id)
        return next((one for one in ids if one is not None), None)

    @property
    def tokenizer_name(self) -> str:
        """Names the chat template in the harness's cache of requests."""
        return str(self.engine.info.model).replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """The engine's facts, for the results file."""
        return {"workbench": asdict(self.engine.info)}

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: object
    ) -> list[int]:
        """Tokens of a text; one that begins with the prefix token's text gets no special tokens."""
        return self._encoded([string], add_special_tokens)[0] if string else []

    def _encoded(self, texts: Sequence[str], special: bool | None = None) -> list[list[int]]:
        special = self._bos if special is None else special
        chosen = {} if special is None else {"add_special_tokens": special}
        rows = list(self.tokenizer([*texts], verbose=False, **chosen).input_ids) if texts else []
        for place in filter(lambda at: self._begun(texts[at]), range(len(texts))):
            rows[place] = self.tokenizer(texts[place], add_special_tokens=False).input_ids
        return rows

    def _begun(self, text: str) -> bool:
        """Whether a text has its first special token already, as a chat template writes it."""
        prefix = self.prefix_token_id
        return prefix is not None and text.startswith(self.tokenizer.decode(prefix))

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> Scores:
        """Log-probability of each continuation, and whether greedy decoding gives it."""
        self._check_scores()
        # `TemplateLM` calls the tokenizer twice for each request; this calls it once for all.
        moved = []  # spaces at the end of a context belong to the continuation
        for context, continuation in (request.args for request in requests):
            kept = context.rstrip() if context else ""
            moved.append((kept, context[len(kept) :] + continuation))
        texts = [*dict.fromkeys(one for c, k in moved if c for one in (c + k, c))]
        ids = dict(zip(texts, self._encoded(texts), strict=True))
        pairs = [
            (ids[c], ids[c + k][len(ids[c]) :]) if c else self._unconditional(k) for c, k in moved
        ]
        return self._loglikelihood_tokens([(None, *pair) for pair in pairs])

    def _unconditional(self, text: str) -> Pair:
        ids, prefix = self.tok_encode(text, add_special_tokens=False), self.prefix_token_id
        return (ids[:1], ids[1:]) if ids[:1] == [prefix] else ([prefix or 0], ids)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: object
    ) -> Scores:
        most = self.max_length - 1  # vLLM needs room for one more token
        pairs: list[Pair] = []
        for _key, context, continuation in requests:
            cut = max(0, len(context) + len(continuation) - most)
            pairs.append((context[cut:], continuation[max(0, cut - len(context)) :]))
        asked = [pair for pair in pairs if pair[1]]
        scores = iter(self.engine.score_tokens(asked) if asked else ())
        rows = [next(scores) if pair[1] else None for pair in pairs]
        return [(sum(row.logprobs), row.greedy) if row else (0.0, True) for row in rows]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability of each text, in windows if it is longer than the context."""
        self._check_scores()
        size, prefix = self.max_length - 2, self.prefix_token_id
        windows = [
            [*map(make_disjoint_window, get_rolling_token_windows(ids, prefix, size, 1))]
            for ids in (self.tok_encode(*request.args) for request in requests)
        ]
        scores = iter(self._loglikelihood_tokens([(None, *pair) for of in windows for pair in of]))
        return [float(sum(next(scores)[0] for _ in of)) for of in windows]

    def _check_scores(self) -> None:
        if self.tokenizer is None or not hasattr(self.engine, "score_tokens"):
            raise InputError(
                f"the {self.engine.info.engine} engine cannot score tokens, which this task needs: "
                'use engine="vllm" or "transformers", or a task that generates'
            )

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The answer to each context, without the stop text."""
        texts = [request.args[0] for request in requests]
        tokens = self._encoded(texts) if self.tokenizer else [None] * len(texts)
        groups: dict[Sampling, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(self._sampling(request.args[1]), []).append(place)
        end = [] if self.eot_token_id is None else [self.tokenizer.decode(self.eot_token_id)]
        answers = [""] * len(texts)
        for sampling, places in groups.items():
            prompts = [self._prompt(texts[at], tokens[at], sampling.max_tokens) for at in places]
            ours = replace(sampling, stop=()) if self._think_end else sampling
            stops = [*sampling.stop, *end]
            for at, answer in zip(places, self.engine.generate(prompts, ours), strict=True):
                answers[at] = postprocess_generated_text(self._text(answer), stops, self._think_end)
        return answers

    def _sampling(self, arguments: dict[str, Any]) -> Sampling:
        sampling = sampling_of(arguments, self.max_gen_toks)
        drawn = sampling.temperature > 0 and sampling.seed is None
        return replace(sampling, seed=self._seed) if drawn else sampling

    def _prompt(self, text: str, tokens: list[int] | None, room: int) -> Prompt:
        """The text, where the engine makes the same tokens of it, else the tokens."""
        if tokens is None:
            return json.loads(text) if isinstance(text, ChatJson) else text
        kept, _ = maybe_truncate(tokens, room, self.max_length, side=self._side)
        same = len(kept) == len(tokens) and self._bos is None and not self._begun(text)
        return text if same else TokenPrompt(kept)

    def _text(self, answer: Any) -> str:
        """An answer with the text of its special tokens, which the harness keeps."""
        ids = [*(answer.token_ids or ())]
        if self.tokenizer is None or not {*self.tokenizer.all_special_ids} & {*ids[:-1]}:
            return str(answer.text)
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A chat as text, by the tokenizer's template or the option `chat_template`.

        As in the harness, a template that refuses the system message gets the chat without it.
        """
        if self.tokenizer is None:
            return ChatJson(json.dumps(chat_history))
        try:
            return chat_text(self.tokenizer, chat_history, ChatOptions.of(self._options))
        except RefusedChatError as error:
            rest = [message for message in chat_history if message["role"] != "system"]
            if len(rest) == len(chat_history):
                raise
            log.warning("lm_eval: the system messages are left out: %s", error)
            return chat_text(self.tokenizer, rest, ChatOptions.of(self._options))


model_registry.register("workbench")(WorkbenchLM)
