"""Agents: what each does, that all items' programs continue, and that none costs another."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from workbench.agents import (
    AGENTS,
    Agent,
    AgentCase,
    Answer,
    Ask,
    BestOfN,
    MajorityVote,
    Program,
    Score,
    SelfRefine,
    advance,
    named,
    open_agent,
    standard,
)  # fmt: skip
from workbench.agents.methods import cluster, yes_or_no
from workbench.agents.scheduler import MOST_ROUNDS
from workbench.comparison import by_samples, comparison
from workbench.engines.vllm import VLLMEngine
from workbench.errors import EngineError, InputError
from workbench.evaluation import Evaluation, evaluate, load
from workbench.plots import new_figure, plot_costs, plot_samples
from workbench.store import digest
from workbench.tasks import OwnTask, Sums, WordProblems
from workbench.types import Completion, Grade, Item, Sampling

COUNT = 12


def sums(count: int = COUNT) -> list[AgentCase]:
    task = Sums()
    items = task.items(count)
    return [AgentCase(task, item, task.prompt(item, 1), task.sampling) for item in items]


@pytest.fixture
def calls(plain: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts went in each call to the engine."""
    made: list[int] = []
    for name in ("stream", "stream_labels"):
        real = getattr(plain, name)

        def counted(prompts: Sequence[Any], *rest: Any, _real: Any = real, **more: Any) -> Any:
            made.append(len(prompts))
            return _real(prompts, *rest, **more)

        monkeypatch.setattr(plain, name, counted)
    return made


def texts(
    agent: Agent, cases: list[AgentCase], engine: VLLMEngine, seed: int = 0
) -> list[str | None]:
    found = advance(agent, cases, engine, seed=seed)
    return [outcome.answer.text if outcome.answer else None for outcome in found]


def test_standard_is_a_plain_call(plain: VLLMEngine, calls: list[int]) -> None:
    cases = sums()
    alone = [c.text for c in plain.generate([c.prompt for c in cases], cases[0].sampling)]
    assert texts(standard, cases, plain) == alone
    assert calls == [COUNT, COUNT]


def test_equal_answers_are_one_vote() -> None:
    task = WordProblems()
    item = task.items(1)[0]
    numbers = [f"#### {n}" for n in ("18", "7", "", "18.0", "$18", "1,000", "1000", "7")]
    assert cluster(task, item, numbers) == [[0, 3, 4], [1, 7], [5, 6]]
    forms = [rf"\boxed{{{f}}}" for f in (r"\frac{1}{2}", "0.5", r"\sqrt{2}", "x", r"\sqrt{2}")]
    assert cluster(task, item, forms) == [[0, 1], [2, 4], [3]]
    assert cluster(task, item, ["?"]) == []
    texts = OwnTask([{"question": "Where?", "answer": "US"}], style="exact")
    assert cluster(texts, texts.items(1)[0], ["US", "us", "US"]) == [[0, 2], [1]]


def answering(*answers: str) -> Callable[[AgentCase, MajorityVote], Answer]:
    """What the agent makes of these samples."""

    def run(case: AgentCase, agent: MajorityVote) -> Answer:
        program = agent(case)
        next(program)
        samples = tuple(Completion(text=one, finish_reason="stop") for one in answers)
        with pytest.raises(StopIteration) as stop:
            program.send(replace(samples[0], _samples=samples))
        assert isinstance(stop.value.value, Answer)
        return stop.value.value

    return run


def test_the_majority_wins_and_ties_go_to_the_first() -> None:
    task = WordProblems()
    item = task.items(1)[0]
    case = AgentCase(task, item, task.prompt(item), task.sampling)
    agent = MajorityVote(samples=5)
    won = answering("#### 3", "so #### 4", "hm", "#### 4.0", "#### 5")(case, agent)
    assert won.text == "so #### 4"
    assert won.notes == {"votes": 2, "voters": 4, "unparsed": 1, "failed": 0, "tied": False}
    tied = answering("#### 5", "#### 4", "#### 4", "#### 5", "?")(case, agent)
    assert (tied.text, tied.notes["tied"], tied.notes["votes"]) == ("#### 5", True, 2)
    none = answering("a", "b", "c", "d", "e")(case, agent)
    assert (none.text, none.notes["votes"], none.notes["unparsed"]) == ("a", 0, 5)


def test_majority_vote_samples_all_items_in_one_call(plain: VLLMEngine, calls: list[int]) -> None:
    report = evaluate(WordProblems(), plain, MajorityVote(samples=4), count=COUNT)
    assert calls == [COUNT]
    assert report.trace.groupby("id").size().eq(4).all()
    assert (report.rows["voters"] + report.rows["unparsed"] == 4).all()
    one = report.trace[report.trace["id"] == report.rows["id"][0]]
    assert report.rows["text"][0] in set(one["text"])
    assert report.rows["completion_tokens"][0] == one["completion_tokens"].sum()


def test_fewer_samples_of_a_vote_are_a_vote(plain: VLLMEngine) -> None:
    task = WordProblems()
    report = evaluate(task, plain, MajorityVote(samples=4), count=COUNT)
    curve = by_samples(task, report, (1, 2, 4))
    assert list(curve["samples"]) == [1, 2, 4]
    assert curve["accuracy"].tolist()[-1] == report.summary[0].value
    firsts = report.trace[report.trace["sample"] == 0].set_index("id")["text"]
    answers = report.rows.set_index("id")["answer"]
    items = [Item(str(key), {}, answer) for key, answer in answers.items()]
    alone = [bool(task.grade(item, firsts[item.id]).correct) for item in items]
    assert curve["accuracy"][0] == np.mean(alone)
    assert curve["tokens"].is_monotonic_increasing
    assert curve["tokens"].tolist()[-1] == report.rows["completion_tokens"].mean()
    figure, (samples, costs) = new_figure(2)
    plot_samples(samples, curve)
    plot_costs(costs, comparison({"vote": report}))
    figure.draw_without_rendering()
    for counts in ((), (0, 1), (1, 5)):
        with pytest.raises(InputError, match="from 1 to 4"):
            by_samples(task, report, counts)
    with pytest.raises(InputError, match="counts="):
        by_samples(Sums(), evaluate(Sums(), plain, twice, count=2), (1,))


def test_best_of_n_takes_what_the_verifier_trusts(plain: VLLMEngine) -> None:
    task = WordProblems()
    cases = [AgentCase(task, i, task.prompt(i, 4), task.sampling) for i in task.items(6)]
    for outcome in advance(BestOfN(samples=4), cases, plain, seed=3):
        assert outcome.answer is not None
        asked, *scored = outcome.trace
        assert isinstance(asked.result, Completion)
        different = list(dict.fromkeys(s.text for s in asked.result.samples))
        assert len(scored) == len(different)
        odds = [made.result[0] - made.result[1] for made in scored]  # type: ignore[index]
        assert outcome.answer.text == different[int(np.argmax(odds))]
        assert outcome.answer.notes["trust"] == pytest.approx(1 / (1 + np.exp(-max(odds))))


def refined(*answers: str, rounds: int = 3) -> Answer:
    task = WordProblems()
    item = task.items(1)[0]
    program = SelfRefine(rounds=rounds)(AgentCase(task, item, "Q", task.sampling))
    next(program)
    try:
        for text in answers:
            program.send(Completion(text=text, finish_reason="stop"))
    except StopIteration as stop:
        return cast("Answer", stop.value)
    raise AssertionError("it did not end")


def test_self_refine_stops_where_nothing_changes() -> None:
    same = refined("#### 3", "no mistake", "#### 3.0")
    assert (same.text, same.notes) == ("#### 3", {"revisions": 1, "changed": False})
    better = refined("#### 3", "wrong", "#### 4", "fine", "again #### 4")
    assert (better.text, better.notes) == ("#### 4", {"revisions": 2, "changed": True})
    lost = refined("#### 3", "wrong", "I cannot tell")
    assert (lost.text, lost.notes["revisions"]) == ("#### 3", 1)
    read = refined("no idea", "wrong", "#### 4", "fine", "#### 4")
    assert (read.text, read.notes["changed"]) == ("#### 4", True)
    ended = refined("#### 1", "no", "#### 2", "no", "#### 3", rounds=2)
    assert (ended.text, ended.notes["revisions"]) == ("#### 3", 2)


def test_second_thoughts_have_room_where_answers_are_short() -> None:
    task = Sums()
    case = AgentCase(task, task.items(1)[0], "Q", task.sampling)
    program = SelfRefine()(case)
    assert next(program) == Ask("Q")
    critique = program.send(Completion(text=" 3", finish_reason="stop"))
    assert isinstance(critique, Ask)
    assert critique.sampling is not None
    assert critique.sampling.max_tokens > task.sampling.max_tokens == 8
    assert "\n" not in critique.sampling.stop


def verified(*scores: Any) -> Answer:
    """What best of two different samples is, by these scores of them, in turn or at once."""
    case = sums(1)[0]
    program = BestOfN(samples=2)(case)
    next(program)
    samples = [Completion(text=text, finish_reason="stop") for text in ("one", "two")]
    try:
        program.send(replace(samples[0], _samples=tuple(samples)))
        for score in scores:
            if isinstance(score, EngineError):
                program.throw(score)
            else:
                program.send(score)
    except StopIteration as stop:
        return cast("Answer", stop.value)
    raise AssertionError("it did not end")


def test_a_sample_that_cannot_be_verified_is_not_taken() -> None:
    none, sure = (-np.inf, -np.inf), (-0.1, -3.0)
    assert verified([none, sure]).text == "two"
    lost = EngineError("too long")
    found = verified(lost, lost, sure)
    assert (found.text, found.notes["failed"]) == ("two", 1)
    with pytest.raises(EngineError, match="too long"):
        verified(lost, lost, lost)


def test_a_case_goes_on_as_text_or_as_a_chat() -> None:
    case = sums(1)[0]
    assert case.then("5", "Sure?") == f"{case.prompt}5\n\nSure?"
    chat = replace(case, prompt=[{"role": "user", "content": "1+1?"}])
    assert [turn["content"] for turn in chat.then("2", "Sure?")] == ["1+1?", "2", "Sure?"]  # type: ignore[index]


def twice(case: AgentCase) -> Program:
    draft = yield Ask(case.prompt)
    final = yield Ask(case.then(draft.text, "Again: " + str(case.prompt)))
    return str(final.text)


def test_all_programs_go_on_together(plain: VLLMEngine, calls: list[int]) -> None:
    def some(case: AgentCase) -> Program:
        return (yield from (twice if int(case.item.answer) % 2 else standard)(case))

    cases = sums()
    odd = sum(int(case.item.answer) % 2 for case in cases)
    assert 0 < odd < COUNT
    outcomes = advance(some, cases, plain)
    assert (calls[0], sum(calls)) == (COUNT, COUNT + odd)
    assert [len(o.trace) for o in outcomes] == [1 + int(c.item.answer) % 2 for c in cases]
    alone = [advance(some, [case], plain)[0].answer for case in cases]
    assert [outcome.answer for outcome in outcomes] == alone


def test_several_calls_of_a_round_go_at_once(plain: VLLMEngine, calls: list[int]) -> None:
    labels = (" True", " False")

    def both(case: AgentCase) -> Program:
        said, (true, false) = yield [Ask(case.prompt), Score(case.prompt, labels)]
        return Answer(said.text, {"odds": true - false})

    cases = sums()
    outcomes = advance(both, cases, plain)
    assert calls == [COUNT, COUNT]
    scores = plain.label_logprobs([case.prompt for case in cases], labels).logprobs
    odds = [outcome.answer.notes["odds"] for outcome in outcomes if outcome.answer]
    assert odds == pytest.approx(list(scores[:, 0] - scores[:, 1]), abs=1e-4)


def raises(case: AgentCase) -> Program:
    yield Ask(case.prompt)
    raise ValueError("no idea")


def raises_at_once(case: AgentCase) -> Program:
    raise ValueError("no idea")


def never_ends(case: AgentCase) -> Program:
    while True:
        yield Ask(case.prompt)


def yields_text(case: AgentCase) -> Program:
    yield "a prompt"  # type: ignore[misc]
    return ""


def yields_nothing(case: AgentCase) -> Program:
    yield []
    return ""


def yields_an_empty_prompt(case: AgentCase) -> Program:
    yield Ask("")
    return ""


def yields_no_sampling(case: AgentCase) -> Program:
    yield Ask(case.prompt, {"n": 2})  # type: ignore[arg-type]
    return ""


def yields_equal_labels(case: AgentCase) -> Program:
    yield Score(case.prompt, (" a", " a"))
    return ""


def returns_a_number(case: AgentCase) -> Program:
    yield Ask(case.prompt)
    return 7  # type: ignore[return-value]


def notes_are_none(case: AgentCase) -> Program:
    yield Ask(case.prompt)
    return Answer("7", None)  # type: ignore[arg-type]


def notes_hold_a_list(case: AgentCase) -> Program:
    yield Ask(case.prompt)
    return Answer("7", {"all": [7]})  # type: ignore[dict-item]


def exits(case: AgentCase) -> Program:
    yield Ask(case.prompt)
    raise SystemExit(3)


def cannot_be_stopped(case: AgentCase) -> Program:
    while True:
        try:
            yield Ask(case.prompt)
        except BaseException:  # noqa: BLE001 - what users write
            continue


def yields_no_text(case: AgentCase) -> Program:
    yield Ask([{"role": "user", "content": object()}])
    return ""


def refused_by_the_engine(case: AgentCase) -> Program:
    yield Ask(case.prompt, Sampling(regex="("))
    return ""


def no_generator(case: AgentCase) -> Program:
    return "text"  # type: ignore[return-value]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # never stopped
@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (raises, "raised ValueError: no idea"),
        (raises_at_once, "raised ValueError: no idea"),
        (never_ends, f"did not end within {MOST_ROUNDS} rounds"),
        (yields_text, "yield an Ask or a Score"),
        (yields_nothing, "yield an Ask or a Score"),
        (yields_an_empty_prompt, "is empty"),
        (yields_no_sampling, "give a Sampling"),
        (yields_equal_labels, "' a'"),
        (returns_a_number, "returned 7"),
        (no_generator, "not a generator"),
        (notes_are_none, "returned notes=None"),
        (notes_hold_a_list, "returned notes={'all': [7]}"),
        (exits, "raised SystemExit"),
        (cannot_be_stopped, f"did not end within {MOST_ROUNDS} rounds"),
        (yields_no_text, "content"),
        (refused_by_the_engine, "regex"),
    ],
)
def test_a_bad_agent_costs_its_own_row_only(bad: Agent, said: str, plain: VLLMEngine) -> None:
    def mostly(case: AgentCase) -> Program:
        return bad(case) if case is cases[1] else standard(case)

    cases = sums(3)
    outcomes = advance(mostly, cases, plain)
    assert said in (outcomes[1].error or "")
    good = advance(standard, cases, plain)
    assert [outcomes[i].answer for i in (0, 2)] == [good[i].answer for i in (0, 2)]


def test_a_chat_that_a_program_lengthens_is_its_own(plain: VLLMEngine) -> None:
    def longer(case: AgentCase) -> Program:
        turns: Any = case.prompt
        answer = yield Ask(turns)
        turns += [{"role": "assistant", "content": answer.text}]
        turns += [{"role": "user", "content": "Sure?"}]
        final = yield Ask(turns)
        return str(final.text)

    report = evaluate(Sums(), plain, longer, count=2, num_runs=2, style="chat")
    lengths = report.trace["prompt"].map(lambda prompt: len(json.loads(prompt)))
    assert lengths.tolist() == [1, 3] * 4


def test_what_the_engine_refuses_altogether_is_told_at_once(plain: VLLMEngine) -> None:
    with pytest.raises(InputError, match="regex"):
        advance(refused_by_the_engine, sums(2), plain)


class Refusing:
    """An engine that takes no chat, and no text that ends in "!"; one answer it forgets."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def stream(self, prompts: Any, _: Sampling) -> Iterator[tuple[int, Completion]]:
        self.asked += prompts
        if any(not isinstance(prompt, str) or prompt.endswith("!") for prompt in prompts):
            raise InputError("this is refused")
        for index, prompt in enumerate(prompts):
            if not prompt.endswith("forget"):
                yield index, Completion(text="7", finish_reason="stop")


def test_what_is_refused_first_ends_all_before_more_is_asked() -> None:
    def copes(case: AgentCase) -> Program:
        for _ in range(20):
            with suppress(EngineError):
                yield Ask([{"role": "user", "content": "2+2="}])
        return "7"

    engine = Refusing()
    with pytest.raises(InputError, match="this is refused"):
        advance(copes, sums(3), cast("Any", engine))
    assert len(engine.asked) < 10


def test_what_is_refused_later_is_that_calls_error() -> None:
    def late(case: AgentCase) -> Program:
        answer = yield Ask(case.prompt)
        if case.item.id == first:
            yield Ask(f"{case.prompt}!")
        return str(answer.text)

    cases = sums(3)
    first = cases[0].item.id
    outcomes = advance(late, cases, cast("Any", Refusing()))
    assert [outcome.error for outcome in outcomes] == ["this is refused", None, None]
    assert [outcome.answer is None for outcome in outcomes] == [True, False, False]


def test_a_call_without_an_answer_is_an_error() -> None:
    def forgotten(case: AgentCase) -> Program:
        answer = yield Ask(f"{case.prompt} forget" if case.item.id == first else case.prompt)
        return str(answer.text)

    cases = sums(3)
    first = cases[1].item.id
    outcomes = advance(forgotten, cases, cast("Any", Refusing()))
    assert "gave no answer" in str(outcomes[1].error)
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]


def test_an_agent_is_no_class() -> None:
    with pytest.raises(InputError, match=r"give an instance, MajorityVote\(\)"):
        open_agent(cast("Agent", MajorityVote))


def test_a_failed_call_is_raised_in_its_program(plain: VLLMEngine) -> None:
    def long(case: AgentCase) -> Program:
        yield Ask("1+1=" * 2000)
        return "never"

    def patient(case: AgentCase) -> Program:
        try:
            yield Ask("1+1=" * 2000)
        except EngineError as error:
            reasons.append(str(error))
            answer = yield Ask(case.prompt)
            return str(answer.text)
        return "never"

    cases = sums(3)
    reasons: list[str] = []
    outcomes = advance(long, cases, plain)
    assert all("the context of" in (outcome.error or "") for outcome in outcomes)
    assert texts(patient, cases, plain) == texts(standard, cases, plain)
    assert len([reason for reason in reasons if "context" in reason]) == 3
    report = evaluate(Sums(), plain, long, count=3)
    assert (report.summary[0].n, report.summary[0].n_failed) == (0, 3)
    assert report.trace["error"].str.contains("context").all()


def test_what_is_sampled_is_repeatable_and_new_each_round(plain: VLLMEngine) -> None:
    hot = Sampling(max_tokens=20, temperature=1.5)

    def dice(case: AgentCase) -> Program:
        first = yield Ask("Question: How", hot)
        second = yield Ask("Question: How", hot)
        return Answer(first.text, {"second": second.text})

    cases = sums(2)
    one, again, other = (advance(dice, cases, plain, seed=seed) for seed in (1, 1, 2))
    assert [o.answer for o in one] == [o.answer for o in again]
    assert [o.answer for o in one] != [o.answer for o in other]
    assert all(o.answer and o.answer.text != o.answer.notes["second"] for o in one)


def test_runs_differ_and_are_summed_up_by_item(plain: VLLMEngine) -> None:
    hot = Sampling(max_tokens=160, temperature=1.0, stop=("\n\n",))
    report = evaluate(WordProblems(), plain, count=10, num_runs=3, sampling=hot)
    assert len(report.rows) == 30
    by_run = report.rows.pivot_table("text", "id", "run", aggfunc="first")
    assert (by_run[0] != by_run[1]).any()
    metric = report.summary[0]
    assert metric.n == 10
    assert metric.value == pytest.approx(report.rows["correct"].mean())
    assert metric.low < metric.value < metric.high


def test_greedy_runs_say_that_they_are_alike(
    plain: VLLMEngine, caplog: pytest.LogCaptureFixture
) -> None:
    report = evaluate(Sums(), plain, count=5, num_runs=2)
    assert "the same in all 2 runs" in caplog.text
    assert report.summary[0].n == 5


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_interrupted_in_any_round_it_goes_on(stop: int, kept: VLLMEngine) -> None:
    class Interrupted(SelfRefine):
        def __call__(self, case: AgentCase) -> Program:
            program = super().__call__(case)
            result: Any = None
            for number in range(1, 99):
                try:
                    call = program.send(result)
                except StopIteration as end:
                    return end.value  # type: ignore[no-any-return]
                if number == stop and case.item.id == last:
                    raise KeyboardInterrupt
                result = yield call
            raise AssertionError

    task = WordProblems()
    last = task.items(4)[-1].id
    with pytest.raises(KeyboardInterrupt):
        evaluate(task, kept, Interrupted(rounds=2), count=4)
    report = evaluate(task, kept, SelfRefine(rounds=2), count=4)
    whole = evaluate(task, kept, SelfRefine(rounds=2), count=4)
    pd.testing.assert_frame_equal(
        report.rows.drop(columns="from_store"), whole.rows.drop(columns="from_store")
    )
    before = report.trace[(report.trace["id"] == last) & (report.trace["round"] < stop)]
    assert before["from_store"].all()
    assert whole.trace["from_store"].all()


def test_a_report_is_saved_with_its_trace(plain: VLLMEngine, tmp_path: Path) -> None:
    report = evaluate(Sums(), plain, twice, count=3)
    folder = report.save(tmp_path / "report")
    trace = pd.read_parquet(folder / "trace.parquet")
    assert list(trace["round"]) == [1, 2] * 3
    assert set(trace["kind"]) == {"ask"}
    again = load(folder)
    assert again.summary == report.summary
    assert again.usage == report.usage
    assert again.provenance["agent"] == "twice"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["provenance"]["num_runs"] == 1
    assert isinstance(report, Evaluation)


def test_agents_by_name() -> None:
    assert open_agent("standard") is standard
    assert open_agent("majority_vote") == MajorityVote()
    assert open_agent(twice) is twice
    assert named(twice) == "twice"
    assert named(standard) == "standard"
    assert named(BestOfN(4)) == "BestOfN(samples=4, temperature=0.8)"  # the same in each process
    assert named(MajorityVote(4)) == "MajorityVote(samples=4, temperature=0.8)"
    assert set(AGENTS) == {"standard", "majority_vote", "best_of_n", "self_refine"}
    with pytest.raises(InputError, match="did you mean 'majority_vote'"):
        open_agent("majority")
    with pytest.raises(InputError, match="agent=7"):
        open_agent(7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MajorityVote(samples=1), "samples=1"),
        (lambda: MajorityVote(samples=True), "samples=True"),
        (lambda: MajorityVote(temperature=0), "temperature=0"),
        (lambda: BestOfN(samples=0), "samples=0"),
        (lambda: SelfRefine(rounds=0), "rounds=0"),
        (lambda: SelfRefine(critique=" "), "critique=' '"),
    ],
)
def test_settings_that_make_no_sense(make: Callable[[], object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make()


@pytest.mark.parametrize("runs", [0, -1, True, 1.5])
def test_runs_are_a_whole_number(runs: Any, plain: VLLMEngine) -> None:
    with pytest.raises(InputError, match="num_runs="):
        evaluate(Sums(), plain, count=2, num_runs=runs)


def test_a_verdict_on_an_answer_is_asked_in_words_for_any_model() -> None:
    own = OwnTask([{"question": "2+2?", "answer": "4"}])
    (item,) = own.items(1)
    chat = AgentCase(own, item, own.prompt(item, style="chat"), own.sampling)
    asked = yes_or_no(chat, "#### 4")
    assert asked.labels == ("Yes", "No")
    assert isinstance(asked.prompt, list)
    assert "2+2?" in asked.prompt[-1]["content"]
    plain = yes_or_no(AgentCase(own, item, own.prompt(item), own.sampling), "#### 4")
    assert isinstance(plain.prompt, str)
    assert plain.prompt.endswith("Yes or No only.\nReply:")
    words = WordProblems()  # the embedded model has its own form
    (item,) = words.items(1)
    form = yes_or_no(AgentCase(words, item, words.prompt(item), words.sampling), "#### 4")
    assert str(form.prompt).endswith("Is the solution correct?")


def test_a_grader_may_read_an_items_fields(plain: VLLMEngine) -> None:
    class Strict(Sums):
        def grade(self, item: Item, text: str) -> Grade:
            assert item.fields
            return super().grade(item, text)

    report = evaluate(Strict(), plain, MajorityVote(samples=3), count=4)
    assert by_samples(Strict(), report, (1, 3))["n"].tolist() == [4, 4]


class Instant:
    """An engine that answers at once, and holds back what `waits` names until the rest is done."""

    def __init__(self, waits: Callable[[str], bool] = lambda _: False) -> None:
        self.waits, self.others = waits, threading.Event()
        self.asked: list[str] = []

    def stream(self, prompts: Any, _: Sampling) -> Iterator[tuple[int, Completion]]:
        for index, prompt in sorted(enumerate(prompts), key=lambda pair: self.waits(pair[1])):
            if self.waits(prompt) and not self.others.wait(60):
                raise AssertionError("the other items do not continue")
            self.asked.append(prompt)
            yield index, Completion(text="7", finish_reason="stop")


def test_no_item_waits_for_the_slowest() -> None:
    cases = sums(3)
    slow = str(cases[0].prompt)
    engine = Instant(lambda prompt: prompt == slow)

    def three(case: AgentCase) -> Program:
        for number in range(3):
            yield Ask(f"{case.prompt}{'+' * number}")
            if case.prompt == cases[2].prompt and number == 2:
                engine.others.set()
        return "7"

    outcomes = advance(three, cases, cast("Any", engine))
    assert [[call.round for call in outcome.trace] for outcome in outcomes] == [[1, 2, 3]] * 3
    assert engine.asked[:4].count(slow) == 0


def test_work_grows_with_the_number_of_items_and_no_faster() -> None:
    (case,) = sums(1)
    # Seconds; where each answer is looked for among the others, longer than a test may take.
    outcomes = advance(twice, [case] * 60_000, cast("Any", Instant()))
    assert all(len(outcome.trace) == 2 for outcome in outcomes)


def test_sampled_calls_of_a_round_draw_by_their_order(plain: VLLMEngine) -> None:
    hot = Sampling(max_tokens=12, temperature=1.5)

    def late(case: AgentCase) -> Program:
        for _ in range(int(case.item.id == first)):  # the first item comes to the draw last
            yield [Ask(f"{case.prompt} "), Score(case.prompt, (" 1", " 2"))]
        if case.item.id != first:
            yield Ask(case.prompt)
        drawn = yield Ask("Question: How", hot)
        return str(drawn.text)

    cases = sums(4)
    first = cases[0].item.id
    prompts = ["Question: How"] * 4
    seed = int.from_bytes(digest("agents", 5, 2)[:4], "big")
    expected = [c.text for c in plain.generate(prompts, replace(hot, seed=seed))]
    assert texts(late, cases, plain, seed=5) == expected
    assert len(set(expected)) == 4


def test_an_interrupt_does_not_wait_for_what_is_on_its_way(plain: VLLMEngine) -> None:
    def interrupted(case: AgentCase) -> Program:
        yield Ask(case.prompt)
        if case.item.id == last:
            raise KeyboardInterrupt
        yield Ask(case.prompt, Sampling(max_tokens=4000, ignore_eos=True))
        return ""

    cases = sums()
    last = cases[-1].item.id
    with pytest.raises(KeyboardInterrupt):
        advance(interrupted, cases, plain)
    end = time.monotonic() + 20  # a thread ends at its next step, not after its answers
    while any(thread.name == "stream" for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert None not in texts(standard, cases, plain)
