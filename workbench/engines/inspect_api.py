"""Our engines as a model provider of inspect_ai: `inspect eval … --model workbench/NAME`.

inspect_ai calls `generate` once per sample, many at the same time. Calls that arrive within a few
milliseconds become one call of the engine, in a thread. Equal prompts with the same seed are asked
once. What an engine cannot do is refused, and a failed answer is the sample's error.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from typing import Any

from inspect_ai import model as theirs

from workbench.engines.streams import Streams
from workbench.errors import EngineError, InputError
from workbench.export.inspect_log import choice, usage_of
from workbench.types import Completion, Engine, Prompt, Sampling, Style, TokenLogprob

GATHER = 0.005  # seconds in which further calls join a batch
MOST_STREAMS = 8  # at once
MOST_TOKENS = 2048  # of an answer by default, as inspect_ai's own local providers
SAME = ("max_tokens", "temperature", "top_p", "top_k", "seed")  # there and in `Sampling`
REFUSED = (  # they would change answers, and no engine of ours has them
    "best_of", "frequency_penalty", "presence_penalty", "logit_bias", "prompt_logprobs", "effort",
    "reasoning_effort", "verbosity", "modalities", "extra_body",
)  # fmt: skip


@theirs.modelapi(name="workbench")
class WorkbenchAPI(theirs.ModelAPI):
    """An engine for inspect_ai.

    Args:
        model_name: as `open_engine` takes it; `workbench-tiny` is the embedded model.
        base_url: a server's URL; without an `engine`, it selects "remote".
        style: "chat", or "completion": the texts of all messages, separated by empty lines; "auto"
            chooses by the model.
        options: further arguments of `open_engine`, such as `store` and `max_model_len`.

    Raises:
        InputError: an `api_key`, which belongs in a variable; and as `open_engine`.
    """

    def __init__(
        self, model_name: str, base_url: str | None = None, api_key: str | None = None,
        config: Any = None, *, engine: str = "", style: Style = "auto", **options: Any,
    ) -> None:  # fmt: skip
        from workbench.engines import open_engine
        from workbench.engines.style import chosen_style

        if api_key is not None:
            raise InputError("api_key is not accepted here: put it in WORKBENCH_API_KEY")
        super().__init__(model_name, base_url, config=config or theirs.GenerateConfig())
        kind = engine or ("remote" if base_url else "auto")
        self.engine = open_engine(model_name, kind, base_url=base_url, **options)
        self._chat = chosen_style(self.engine, style)[0] == "chat"
        self._batches = Batches(self.engine)

    async def generate(self, input: Any, tools: Any, tool_choice: Any, config: Any) -> Any:  # noqa: A002, ARG002
        """The engine's answer to these messages.

        Raises:
            InputError: tools, a message that is not text, or an option that no engine has.
            EngineError: the engine's reason why there is no answer.
        """
        if tools:
            raise InputError("workbench's engines call no tools: use a solver without tools")
        before = time.monotonic()
        answer = await self._batches.ask(prompt_of(input, chat=self._chat), sampling_of(config))
        if answer.error is not None:
            raise EngineError(answer.error)
        new = [sample for sample in answer.samples if not sample.from_store]  # others cost nothing
        prompt, cached = (answer.prompt_tokens, answer.cached_tokens or 0) if new else (0, 0)
        return theirs.ModelOutput(
            model=self.model_name, choices=[self._choice(sample) for sample in answer.samples],
            usage=usage_of(prompt, sum(one.completion_tokens for one in new), cached),
            time=time.monotonic() - before, metadata={"from_store": not new},
        )  # fmt: skip

    def _choice(self, sample: Completion) -> Any:
        known = sample.logprobs and theirs.Logprobs(content=[*map(self._logprob, sample.logprobs)])
        return choice(
            sample.text, sample.finish_reason, self.model_name, sample.reasoning, logprobs=known
        )

    def _logprob(self, one: TokenLogprob) -> Any:
        tokenizer = getattr(self.engine, "tokenizer", None)

        def text(token: int | str) -> str:
            return tokenizer.decode([token]) if tokenizer and isinstance(token, int) else str(token)

        top = [theirs.TopLogprob(token=text(token), logprob=value) for token, value in one.top]
        return theirs.Logprob(token=text(one.token_id), logprob=one.logprob, top_logprobs=top)

    def max_tokens(self) -> int:
        """Of an answer by default: at most half of the context, to leave room for the prompt."""
        return min(MOST_TOKENS, self.engine.info.context_length // 2 or MOST_TOKENS)

    def close(self) -> None:
        """Stop what is in flight, and close the engine."""
        self._batches.streams.stop()
        self.engine.close()


def sampling_of(config: Any) -> Sampling:
    """inspect_ai's options as a `Sampling`; without a temperature it is greedy."""
    for name in REFUSED:
        if value := getattr(config, name, None):
            raise InputError(f"{name}={value!r}: no engine of workbench has this; leave it out")
    given = {name: getattr(config, name) for name in SAME}
    given |= {"stop": config.stop_seqs, "n": config.num_choices}
    given["max_reasoning_tokens"] = config.reasoning_tokens
    if config.logprobs:
        given["logprobs"] = config.top_logprobs or 0
    if (form := config.response_schema) is not None:
        given["json_schema"] = form.json_schema.model_dump(mode="json", exclude_none=True)
    return Sampling(**{name: value for name, value in given.items() if value is not None})


def prompt_of(messages: Sequence[Any], *, chat: bool) -> Prompt:
    """inspect_ai's messages as a chat, or as one text; refuses what is not text."""
    for message in messages:
        parts = [] if isinstance(message.content, str) else message.content
        other = {part.type for part in parts} - {"text", "reasoning"}
        if other or message.role == "tool":
            what = ", ".join(sorted(other)) or "a tool's result"
            raise InputError(f"a message with {what}: workbench's engines take texts here")
    if chat:
        return [{"role": message.role, "content": message.text} for message in messages]
    return "\n\n".join(message.text for message in messages)


_Call = tuple[Prompt, Sampling, Future[Completion]]


class Batches:
    """Calls that arrive together are one call of the engine; each returns when it is done."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.streams = engine, Streams[int]()
        self._lock = threading.Lock()
        self._waiting: list[_Call] = []
        self._gathering, self._busy = False, 0

    async def ask(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """The answer to one prompt; raises the engine's error for the whole call."""
        from anyio import Event
        from anyio.lowlevel import current_token

        loop: Any = current_token().native_token  # of asyncio or Trio
        soon = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon
        done, answer = Event(), Future[Completion]()
        answer.add_done_callback(lambda _: soon(done.set))
        with self._lock:
            self._waiting.append((prompt, sampling, answer))
            if not self._gathering and self._busy < MOST_STREAMS:
                self._gathering, self._busy = True, self._busy + 1
                self.streams.start(self._work())
        await done.wait()
        return answer.result()

    def _work(self) -> Generator[int, None, None]:
        """Gather calls and answer them, in a thread, until none waits."""
        more = True
        while more:
            time.sleep(GATHER)
            with self._lock:
                batch, self._waiting, self._gathering = self._waiting, [], False
            alike: dict[str, list[_Call]] = {}
            for call in batch:
                alike.setdefault(repr(call[1]), []).append(call)
            for calls in alike.values():
                self._answer(calls)
            with self._lock:
                more = bool(self._waiting) and not self._gathering
                self._gathering = self._gathering or more
                self._busy -= not more
        yield 0

    def _answer(self, calls: Sequence[_Call]) -> None:
        """Answer calls with the same sampling; without a seed, equal prompts differ as samples."""
        sampling, same = calls[0][1], dict[object, list[_Call]]()
        for number, call in enumerate(calls):
            same.setdefault(number if sampling.seed is None else repr(call[0]), []).append(call)
        groups = [*same.values()]
        try:
            for place, answer in self._engine.stream([one[0][0] for one in groups], sampling):
                for _, _, waiting in groups[place]:
                    waiting.set_result(answer)
        except BaseException as error:  # noqa: BLE001 - raised again where each call waits
            for _, _, waiting in calls:
                if not waiting.done():
                    waiting.set_exception(error)
