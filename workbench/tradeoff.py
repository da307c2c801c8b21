"""Quality and speed of a masked-diffusion model: what thresholds and caches save, and cost.

A measurement: each answer is computed again, with one model in memory, all settings in turn.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from workbench import values
from workbench.agents import AgentCase
from workbench.cases import prepare_cases
from workbench.engines.base import failure
from workbench.engines.diffusion import Counts, Denoising, DiffusionEngine, Row
from workbench.errors import EngineError, InputError
from workbench.lazy import np, pd
from workbench.progress import one_bar
from workbench.stats import paired_shares
from workbench.types import Report, Sampling, Usage
from workbench.verdicts import accuracy, to_frame, try_to_grade


class TradeOff:
    """A measurement: `run()` performs it, and resumes it after an interrupt.

    `rows` has one row for each finished item and setting: `setting`, `round`, `id`, the item's
    fields, `answer`, `text`, `extracted`, `correct`, `parsed`, `error`, `forwards` (steps until the
    answer was complete), `completion_tokens`. `speeds` has one row for each setting and round:
    `seconds`, `forwards` (runs of the model), `positions` (computed in these), `tokens` (of the
    answers, including their ends), `tokens_per_s`, `failed`.

    Args:
        engine: the model; rows share its batch.
        settings: the others are compared with the first.
        task: a name, or a task.
        count: number of items; None is the task's default. `seed` selects them.
        sampling: how to answer; by default the task's (greedy).
        repeats: rounds over all settings. The first round gives `rows`, all rounds give `speeds`.

    Raises:
        InputError: no settings, a repeated one, or a value out of its range.
    """

    def __init__(
        self,
        engine: DiffusionEngine,
        settings: Sequence[Denoising],
        task: object = "word_problems",
        count: int | None = None,
        *,
        seed: int = 0,
        sampling: Sampling | None = None,
        repeats: int = 3,
    ) -> None:
        if not settings or len({*map(str, settings)}) < len(settings):
            raise InputError(f"{len(settings)} settings: at least one is needed, and none twice")
        if not isinstance(engine, DiffusionEngine):
            raise InputError(
                f'{engine!r:.80} is not a diffusion engine: open one (engine="diffusion")'
            )
        self._engine, self._settings = engine, tuple(settings)
        self._repeats = values.whole("repeats", repeats, 1)
        self._cases, self._about = prepare_cases(
            task, engine, count=count, seed=seed, sampling=sampling
        )
        self._prompts = [engine.encode(str(case.prompt)) for case in self._cases]
        self._done: dict[tuple[int, int], tuple[dict[str, Any], list[dict[str, Any]]]] = {}

    @property
    def rows(self) -> pd.DataFrame:
        """The answers so far."""
        return to_frame([row for key in sorted(self._done) for row in self._done[key][1]])

    @property
    def speeds(self) -> pd.DataFrame:
        """The speeds so far."""
        return to_frame([self._done[key][0] for key in sorted(self._done)])

    def run(self) -> Report:
        """Measure what is missing; Ctrl-C keeps finished measurements."""
        plan = [(r, s) for r in range(self._repeats) for s in range(len(self._settings))]
        left = [key for key in plan if key not in self._done]
        with one_bar(len(left) * len(self._cases), "denoising", "row") as bar:
            for number, (turn, which) in enumerate(left):
                bar.set_postfix_str(str(self._settings[which]))
                if not number:  # the first run is slower
                    self._denoise(self._settings[which], None, first=self._engine.batch_size)
                self._done[turn, which] = self._measure(turn, self._settings[which], bar)
        return self.report()

    def report(self) -> Report:
        """The results so far: the accuracy of each setting.

        Raises:
            InputError: there are none.
        """
        rows = self.rows
        if rows.empty:
            raise InputError("nothing has been measured yet: call run()")
        shares = [accuracy(part, str(name)) for name, part in rows.groupby("setting", sort=False)]
        speeds = self.speeds
        used = Usage(
            requests=len(self._cases) * len(speeds),
            prompt_tokens=sum(map(len, self._prompts)) * len(speeds),
            completion_tokens=int(speeds["tokens"].sum()),
            failed=int(speeds["failed"].sum()),
            seconds=float(speeds["seconds"].sum()),
        )
        provenance = self._about | {
            "settings": [asdict(setting) for setting in self._settings],
            "batch_size": self._engine.batch_size,
            "repeats": self._repeats,
            "complete": len(self._done) == self._repeats * len(self._settings),
        }
        return Report(tuple(shares), rows, used, provenance)

    def table(self) -> pd.DataFrame:
        """A row per setting.

        Columns: `setting`; its `cache`, `threshold`, `steps` (NaN, both: one step per token) and
        `block_length`; its `accuracy` with the interval `low` to `high`, `n`, `n_failed`,
        `n_unparsed`; `forwards` per answer, `forwards_per_token`; `tokens_per_s`, the median of the
        rounds, `slowest` to `fastest`. Against the first setting: `pairs`, the number of items on
        which neither failed; on these, `points`, the accuracy minus the first's, `points_low` to
        `points_high`, and `fewer`, the first's forwards over this setting's, `fewer_low` to
        `fewer_high` (intervals are 95 %; this one by 1,000 resamples of the items); `faster`, the
        median over rounds of the first's seconds over this setting's, with the range `faster_low`
        to `faster_high`.

        Raises:
            InputError: there are no results yet.
        """
        self.report()
        rows, speeds = self.rows, self.speeds.set_index(["setting", "round"])
        base = str(self._settings[0])
        made = []
        for setting in self._settings:
            name = str(setting)
            part = rows[rows["setting"] == name]
            if part.empty:
                continue
            share, done, its = accuracy(part), part[part["error"].isna()], speeds.loc[name]
            forwards, tokens = done["forwards"], max(1, done["completion_tokens"].sum())
            ratio = (speeds.loc[base]["seconds"] / its["seconds"]).dropna()
            pace = its["tokens_per_s"]
            made.append({
                "setting": name, "cache": setting.cache, "threshold": setting.threshold,
                "steps": setting.steps, "block_length": setting.block_length,
                "accuracy": share.value, "low": share.low, "high": share.high,
                "n": share.n, "n_failed": share.n_failed, "n_unparsed": share.n_unparsed,
                "forwards": forwards.mean(), "forwards_per_token": forwards.sum() / tokens,
                "tokens_per_s": pace.median(), "slowest": pace.min(), "fastest": pace.max(),
                **_against(part, None if name == base else rows[rows["setting"] == base]),
                "faster": ratio.median(), "faster_low": ratio.min(), "faster_high": ratio.max(),
            })  # fmt: skip
        return to_frame(made)

    def _measure(
        self, turn: int, setting: Denoising, bar: Any
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        start = time.perf_counter()
        answers, counts = self._denoise(setting, bar)
        seconds = time.perf_counter() - start
        about: dict[str, Any] = {"setting": str(setting), "round": turn}
        made = [self._row(*pair) | about for pair in zip(self._cases, answers, strict=True)]
        bar.update(sum(not isinstance(answer, Row) for answer in answers))
        tokens = sum(row["completion_tokens"] for row in made)
        speed = {"seconds": seconds, "forwards": counts.forwards, "positions": counts.tokens,
                 "tokens": tokens, "tokens_per_s": tokens / seconds,
                 "failed": sum(row["error"] is not None for row in made)}  # fmt: skip
        return about | speed, [] if turn else made

    def _denoise(
        self, setting: Denoising, bar: Any, first: int | None = None
    ) -> tuple[list[Row | InputError], Counts]:
        """All answers, or the first few."""
        rows = [self._asked(place, setting) for place in range(len(self._prompts))[:first]]
        denoiser = self._engine.denoiser()
        for row in rows:
            if isinstance(row, Row):
                denoiser.add(row)
        while denoiser.live or denoiser.waiting:
            done = sum(row.done for row in denoiser.step())
            if bar is not None:
                bar.update(done)
        return rows, denoiser.counts

    def _asked(self, place: int, setting: Denoising) -> Row | InputError:
        try:
            sampling = self._cases[place].sampling
            return self._engine.row(self._prompts[place], sampling, setting, seed=place)
        except InputError as error:  # this prompt is too long; the others may fit
            return error

    def _row(self, case: AgentCase, row: Row | InputError) -> dict[str, Any]:
        item, done = case.item, row.completion() if isinstance(row, Row) else failure(str(row))
        grade, error = None, done.error
        if error is None:
            grade, error = try_to_grade(case.task, item, done.text)
        return {
            **item.fields, "id": item.id, "answer": item.answer, "text": done.text,
            "extracted": grade and grade.extracted, "correct": bool(grade and grade.correct),
            "parsed": bool(grade and grade.parsed), "error": error,
            "forwards": getattr(row, "forwards", 0), "completion_tokens": done.completion_tokens,
        }  # fmt: skip


def _against(part: pd.DataFrame, first: pd.DataFrame | None) -> dict[str, float]:
    """Differences to the first setting, on the items that failed in neither."""
    if first is None:  # it is the first
        return {"pairs": int(part["error"].isna().sum()), "points": 0.0, "fewer": 1.0}
    both = part.merge(first, on="id", suffixes=("", "_first"))
    both = both[both["error"].isna() & both["error_first"].isna()]
    if both.empty:
        return {"pairs": 0}
    points = paired_shares("points", both["correct"], both["correct_first"])
    mine, others = (both[name].to_numpy(float) for name in ("forwards", "forwards_first"))
    drawn = np.random.default_rng(0).integers(len(both), size=(1000, len(both)))
    low, high = np.quantile(others[drawn].sum(1) / mine[drawn].sum(1), (0.025, 0.975))
    return {
        "pairs": len(both), "points": 100 * points.value, "points_low": 100 * points.low,
        "points_high": 100 * points.high, "fewer": others.sum() / mine.sum(), "fewer_low": low,
        "fewer_high": high,
    }  # fmt: skip


def denoised(
    engine: DiffusionEngine,
    prompt: str,
    sampling: Sampling | None = None,
    denoising: Denoising | None = None,
) -> pd.DataFrame:
    """When each token of an answer was committed, and with what probability.

    Args:
        sampling: how to answer, and the length of the canvas; greedy by default.
        denoising: the settings; None uses the engine's.

    Returns:
        A row per token of the answer, in order: `place`, `token`, `text`, `step` (from 1), and
        `probability` at that step.

    Raises:
        InputError: the prompt and its canvas do not fit into the context length.
        EngineError: the model failed.
    """
    sampling = replace(sampling or Sampling(), logprobs=0)
    row = engine.row(engine.encode(prompt), sampling, denoising, seed=0)
    denoiser = engine.denoiser(1)
    denoiser.add(row)
    steps: dict[int, int] = {}
    before = row.ids.clone()
    while not row.done:
        denoiser.step()
        changed = (row.ids != before).nonzero()[:, 0].tolist()
        steps |= dict.fromkeys(changed, row.forwards)
        before = row.ids.clone()
    done = row.completion()
    if done.error is not None:
        raise EngineError(done.error)
    first = len(row.prompt)
    return pd.DataFrame([
        {"place": place, "token": one.token_id, "text": engine.tokenizer.decode([one.token_id]),
         "step": steps[first + place], "probability": math.exp(one.logprob)}
        for place, one in enumerate(done.logprobs or ())
    ])  # fmt: skip
