"""Two entry points that other judging clients have, on top of this package's engines and judges.

Differences from those clients: a missing verdict is None, never 0, and a failure affects only its
own prompt, not a whole chunk.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Self

from workbench.engines import open_engine
from workbench.errors import InputError, log
from workbench.judge.judge import Judge
from workbench.judge.templates import Case, Template
from workbench.judge.votes import Mode
from workbench.types import Engine, Message, Prompt, Sampling

URL = "LLM_JUDGE_SERVER_URL"


def compute_llm_judge_scores_batch(
    problems: Sequence[str],
    ground_truths: Sequence[str | None],
    candidates_list: Sequence[Sequence[str | None]],
    *,
    server_url: str | None = None,
    model_name: str | None = None,
    batch_size: int = 64,
    engine: Engine | None = None,
    mode: Mode = "generate",
    template: Template | str | Path | None = None,
    samples: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
    max_tokens: int = 1024,
    store: str | Path | None = "default",
) -> tuple[list[list[float | None]], list[int | None]]:
    """Judge several candidates for each problem.

    Args:
        problems, ground_truths: one each; a ground truth may be None or "".
        candidates_list: the candidates for each problem; None is one that was not generated.
        server_url: of an OpenAI-compatible server; `$LLM_JUDGE_SERVER_URL` by default.
        model_name: None means the server's only model.
        batch_size: maximum number of requests in flight.
        engine: an open engine to judge with, instead of a server.
        mode: "generate" scores an accepted candidate 1.0 and a rejected one 0.0; "logprob" scores
            the probability of accepting, which also ranks several good candidates.
        template, samples, temperature, seed, max_tokens: as in `Judge`.
        store: for verdicts, as in `open_engine`; an open engine has its own store.

    Returns:
        The scores of each problem's candidates, None for a missing verdict; and for each problem
        the index of the first candidate with the highest score, None if no candidate has a score.

    Raises:
        InputError: lists of different lengths, an empty problem, no server and no engine.
    """
    cases = _cases(problems, ground_truths, candidates_list)
    scores: list[list[float | None]] = [[None] * len(row) for row in candidates_list]
    _check_one(engine, server_url)
    opened: AbstractContextManager[Engine] = (
        _open(_url(server_url), model_name, batch_size, "auto", store)
        if engine is None
        else nullcontext(engine)  # a caller's engine stays open
    )
    with opened as judging:
        judge = Judge(
            judging,
            template,
            samples=samples,
            temperature=temperature,
            seed=seed,
            max_tokens=max_tokens,
        )
        if cases:
            rows = judge.pointwise(list(cases.values()), mode).rows
            found = rows["verdict" if mode == "generate" else "probability"]
            for (p, c), value, known in zip(cases, found, found.notna(), strict=True):
                scores[p][c] = float(value) if known else None
    _warn(sum(score is None for row in scores for score in row), "candidates have no score")
    return scores, [_best(row) for row in scores]


class LLMJudgeClient:
    """A client for a judging model on a server.

    Args:
        server_url: of an OpenAI-compatible server; `$LLM_JUDGE_SERVER_URL` by default.
        model_name: None means the server's only model.
        batch_size_per_worker: prompts per request, if the server accepts several.
        num_workers: maximum number of requests in flight.
        engine: an open engine instead of a server; `close` does not close it.
        store: for answers, as in `open_engine`.

    Raises:
        InputError: no server and no engine.
    """

    def __init__(
        self,
        server_url: str | None = None,
        model_name: str | None = None,
        *,
        batch_size_per_worker: int = 8,
        num_workers: int = 16,
        engine: Engine | None = None,
        store: str | Path | None = "default",
    ) -> None:
        _check_one(engine, server_url)
        self._url = _url(server_url) if engine is None else None
        self._model, self._workers, self._store = model_name, num_workers, store
        self._engine, self._given = engine, engine is not None
        self._batch = batch_size_per_worker
        self._opened_with: int | None = None

    def generate_responses(
        self,
        prompts: Sequence[str | Sequence[Message]],
        batch_size_per_worker: int | None = None,
        max_tokens: int = 512,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> list[str | None]:
        """Answer all prompts, in order.

        Args:
            prompts: texts, each sent as a user message, or chats.
            batch_size_per_worker: overrides the client's.
            max_tokens, temperature, top_p, seed: as in `Sampling`.

        Returns:
            The texts of the answers, None for a failed one.

        Raises:
            InputError: a prompt or an argument is invalid.
            EngineError: the server cannot be used.
        """
        if isinstance(prompts, str):
            raise InputError("prompts is a text: make it a list of prompts")
        sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed)
        if not prompts:
            return []
        chats: list[Prompt] = [
            [{"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts
        ]
        batch = self._batch if batch_size_per_worker is None else batch_size_per_worker
        engine = self._with(batch)
        answers = engine.generate(chats, sampling, errors="return")
        _warn(sum(a.error is not None for a in answers), "prompts failed")
        return [None if answer.error else answer.text for answer in answers]

    def close(self) -> None:
        """Close the connections."""
        if self._engine is not None and not self._given:
            self._engine.close()
            self._engine = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _with(self, batch: int) -> Engine:
        if self._engine is not None and (self._given or self._opened_with == batch):
            return self._engine
        self.close()
        self._engine = _open(self._url, self._model, self._workers, batch, self._store)
        self._opened_with = batch
        return self._engine


def _url(server_url: str | None) -> str:
    if not (url := server_url or os.environ.get(URL)):
        raise InputError(f"no judging server: give server_url, or set {URL}")
    return url


def _check_one(engine: Engine | None, server_url: str | None) -> None:
    if engine is not None and server_url is not None:
        raise InputError(f"server_url={server_url!r} and an engine: give one of them")


def _open(
    url: str | None, model: str | None, workers: int, batch: int | str, store: str | Path | None
) -> Engine:
    return open_engine(
        model,
        "remote",
        store=store,
        base_url=url,
        max_concurrency=workers,
        prompts_per_request=batch,
    )


def _cases(
    problems: Sequence[str],
    ground_truths: Sequence[str | None],
    candidates_list: Sequence[Sequence[str | None]],
) -> dict[tuple[int, int], Case]:
    """The cases to judge, by (index of the problem, index of the candidate)."""
    lengths = {len(problems), len(ground_truths), len(candidates_list)}
    if len(lengths) > 1 or isinstance(problems, str):
        raise InputError(
            f"{len(problems)} problems, {len(ground_truths)} ground_truths and "
            f"{len(candidates_list)} candidates_list: give one of each for every problem"
        )
    cases: dict[tuple[int, int], Case] = {}
    for p, (problem, truth) in enumerate(zip(problems, ground_truths, strict=True)):
        if isinstance(candidates_list[p], str):
            raise InputError(f"candidates_list[{p}] is a text: make it a list of candidates")
        for c, candidate in enumerate(candidates_list[p]):
            if candidate is not None:
                cases[p, c] = Case(problem, candidate, truth or None)
    return cases


def _best(scores: Sequence[float | None]) -> int | None:
    known = [(score, -index) for index, score in enumerate(scores) if score is not None]
    return -max(known)[1] if known else None


def _warn(missing: int, what: str) -> None:
    if missing:
        log.warning("%d %s: returned as None", missing, what)
