"""A report as inspect_ai's log file: `inspect view` shows each answer with its prompt and score.

Prompts come from the trace of the calls. A report without one has the question of its rows there,
and the sample's metadata says so. A report knows how long its calls took, but not when: the log
ends when it is written.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import InputError
from workbench.export import need, public
from workbench.lazy import pd

if TYPE_CHECKING:
    from workbench.types import Report

Row = Mapping[str, Any]
SCORE = "correct"  # the column with the verdict, and the name of the score
QUESTIONS = ("prompt", "question", "statement", "claim")  # columns, where there is no trace
SHOWN = {"id", "run", "answer", "text", "extracted", "correct", "parsed", "error"}
REASONS = {"stop": "stop", "length": "max_tokens"}


def write_log(report: Report, path: Path) -> None:
    """Write the log.

    Raises:
        InputError: the report has no answers, or inspect_ai is not installed.
    """
    log = need("inspect", "inspect_ai.log")
    if "text" not in report.rows and SCORE not in report.rows:
        raise InputError("inspect_ai shows answers, and this report has none: export it to .csv")
    log.write_eval_log(_log(log, report), str(path), format="eval")


def _log(log: Any, report: Report) -> Any:
    about, used, now = dict(report.provenance), report.usage, datetime.now(UTC)
    engine, task, commit = (about.get(name) for name in ("engine", "task", "commit"))
    engine, name, now_text = engine or {}, str(task or "report"), now.isoformat()
    model, chat = str(engine.get("model", "unknown")), about.get("style") == "chat"
    rows = [{"id": n, "run": 0, **row} for n, row in enumerate(_records(report.rows), 1)]
    calls: dict[tuple[Any, int], list[Row]] = defaultdict(list)
    for call in _records(getattr(report, "trace", None)):
        calls[call["id"], call["run"]].append(call)
    ids = [*dict.fromkeys(row["id"] for row in rows)]
    spec = log.EvalSpec(
        created=now_text, run_id=now_text, task_id=str(about.get("items", "")), task=name,
        solver=str(about.get("agent", "")) or None, model=model,
        model_args={one: engine[one] for one in ("engine", "revision", "dtype") if engine},
        dataset=log.EvalDataset(name=name, samples=len(ids), sample_ids=ids),
        config=log.EvalConfig(epochs=int(about.get("num_runs", 1)), fail_on_error=False),
        revision=commit and log.EvalRevision(type="git", origin="", commit=str(commit)),
        packages=dict(engine.get("versions") or {}), metadata=public(about),
    )  # fmt: skip
    done = sum(row.get("error") is None for row in rows)
    score = log.EvalScore(
        name=SCORE, scorer=SCORE, metrics=_metrics(log, report), scored_samples=done,
        unscored_samples=len(rows) - done,
    )  # fmt: skip
    usage = usage_of(used.prompt_tokens, used.completion_tokens, used.cached_tokens or 0)
    return log.EvalLog(
        status="success", eval=spec,
        stats=log.EvalStats(
            started_at=(now - timedelta(seconds=used.seconds)).isoformat(), completed_at=now_text,
            model_usage={model: usage},
        ),
        results=log.EvalResults(total_samples=len(rows), completed_samples=done, scores=[score]),
        samples=[_sample(row, calls[row["id"], row["run"]], model, chat=chat) for row in rows],
    )  # fmt: skip


def _records(frame: pd.DataFrame | None) -> list[dict[str, Any]]:
    """Rows as JSON values; missing ones are None."""
    if frame is None:
        return []
    text = frame.to_json(orient="records", double_precision=15, default_handler=str)
    return list(json.loads(text))


def _metrics(log: Any, report: Report) -> dict[str, Any]:
    """Each known number of the summary, with its bounds after it."""
    found = {}
    for one in report.summary:
        counts = {"n": one.n, "n_failed": one.n_failed, "n_unparsed": one.n_unparsed}
        for end, value in (("", one.value), (" low", one.low), (" high", one.high)):
            if math.isfinite(value):
                name = f"{one.name}{end}"
                found[name] = log.EvalMetric(name=name, value=value, metadata=counts)
    return found


def _sample(row: Row, calls: Sequence[Row], model: str, *, chat: bool) -> Any:
    log = need("inspect", "inspect_ai.log")
    about = {name: value for name, value in row.items() if name not in SHOWN}
    asked = str(calls[0]["prompt"]) if calls else ""
    if not calls:
        name = next((name for name in QUESTIONS if row.get(name)), None)
        asked = str(row[name]) if name is not None else json.dumps(about, ensure_ascii=False)
        about["input"] = f"column {name}" if name else "the row: the report has no prompt"
    prompt = _messages(asked, chat=chat)
    only = calls[0] if len(calls) == 1 else {}
    how = only.get("finish_reason"), only.get("reasoning")
    output = _output([(row.get("text"), *how)], model, row)
    error, score, target = row.get("error"), _score(row), row.get("answer")
    return log.EvalSample(
        id=row["id"], epoch=int(row["run"]) + 1, input=prompt if chat else asked,
        target="" if target is None else str(target), messages=[*prompt, output.message],
        output=output, scores={SCORE: score} if score else None, metadata=about,
        events=_events(calls, model, chat=chat),
        model_usage={model: output.usage} if output.usage else {},
        error=error and log.EvalError(message=str(error), traceback="", traceback_ansi=""),
    )  # fmt: skip


def _score(row: Row) -> Any:
    """The verdict; None for a row that failed or has none."""
    if row.get("error") is not None or row.get(SCORE) is None:
        return None
    score = need("inspect", "inspect_ai.scorer").Score
    if not row.get("parsed", True):
        unread = "no answer could be read from the text"
        return score(value="N", explanation=unread, reason="invalid_response_format")
    read = row.get("extracted")
    why = f"read {read!r}; right is {row['answer']!r}" if "answer" in row else None
    answer = None if read is None else str(read)
    return score(value="C" if row[SCORE] else "I", answer=answer, explanation=why)


def _events(calls: Sequence[Row], model: str, *, chat: bool) -> list[Any]:
    """The trace: an event for each call, with all samples of an answer."""
    event = need("inspect", "inspect_ai.event")
    config = need("inspect", "inspect_ai.model").GenerateConfig()
    each: dict[int, list[Row]] = defaultdict(list)
    for row in calls:
        each[row["call"]].append(row)
    events = []
    for same in each.values():
        first, place = same[0], {name: same[0][name] for name in ("round", "call")}
        if first["kind"] == "score":
            known = {"prompt": first["prompt"], "log-probabilities of the labels": first["text"]}
            events.append(event.InfoEvent(source="workbench", data={**place, **known}))
            continue
        texts = [(row["text"], row.get("finish_reason"), row.get("reasoning")) for row in same]
        events.append(event.ModelEvent(
            model=model, input=_messages(first["prompt"], chat=chat), tools=[], tool_choice="none",
            config=config, output=_output(texts, model, first), error=first.get("error"),
            metadata={**place, "from_store": first.get("from_store")},
        ))  # fmt: skip
    return events


def _messages(prompt: str, *, chat: bool) -> list[Any]:
    kinds = need("inspect", "inspect_ai.model")
    turns = json.loads(prompt) if chat and prompt.startswith("[") else [{"content": prompt}]
    of = {"system": kinds.ChatMessageSystem, "assistant": kinds.ChatMessageAssistant}
    user = kinds.ChatMessageUser
    return [of.get(str(turn.get("role")), user)(content=_text(turn["content"])) for turn in turns]


def _text(content: Any) -> str:
    """A message's text; a part without one, such as an image, is named."""
    parts = [content] if isinstance(content, str) else content
    return "\n".join(one if isinstance(one, str) else one.get("text") or str(one) for one in parts)


def _output(texts: Sequence[tuple[str | None, ...]], model: str, row: Row) -> Any:
    """Texts, reasons why they ended and thinking, of one call."""
    counts = [row.get(name) for name in ("prompt_tokens", "completion_tokens")]
    return need("inspect", "inspect_ai.model").ModelOutput(
        model=model,
        choices=[choice(text or "", end, model, thought) for text, end, thought in texts],
        usage=None if None in counts else usage_of(*map(int, counts)),  # type: ignore[arg-type]
    )  # fmt: skip


def choice(
    text: str, reason: str | None, name: str, thinking: str | None = None, logprobs: Any = None
) -> Any:
    """An answer as inspect_ai has it, with the thinking before it."""
    model = need("inspect", "inspect_ai.model")
    content: Any = text
    if thinking is not None:
        content = [model.ContentReasoning(reasoning=thinking), model.ContentText(text=text)]
    message = model.ChatMessageAssistant(content=content, model=name, source="generate")
    known = REASONS.get(reason or "", "unknown")
    return model.ChatCompletionChoice(message=message, stop_reason=known, logprobs=logprobs)


def usage_of(prompt: int, made: int, cached: int = 0) -> Any:
    """Tokens as inspect_ai counts them: cached ones of a prompt apart."""
    return need("inspect", "inspect_ai.model").ModelUsage(
        input_tokens=prompt - cached, input_tokens_cache_read=cached, output_tokens=made,
        total_tokens=prompt + made,
    )  # fmt: skip
