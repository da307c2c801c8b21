"""Servers that answer chats and have no completions: paid APIs, of many habits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
from chat_proxy import chat_api
from conftest import SERVER_KEY
from stranger import Asked, Said, Stranger, listing, reply
from stranger import plain as plain_answer
from typer.testing import CliRunner

from workbench.agents import AGENTS
from workbench.cli import app
from workbench.engines import open_engine
from workbench.engines.remote import RemoteEngine
from workbench.engines.style import chosen_style, common_style, style_by_name
from workbench.engines.vllm import VLLMEngine
from workbench.errors import EngineError, EngineGoneError, EngineUnavailableError, InputError
from workbench.evaluation import evaluate, run_suite
from workbench.judge import Case, Judge, builtin
from workbench.machine import install_hint
from workbench.nb.many import run
from workbench.serving import Server
from workbench.tasks import open_choices, open_task
from workbench.tiny import MODEL
from workbench.types import Sampling
from workbench.uncertainty import elicit, sample_uncertainty

CHAT = [{"role": "user", "content": "a"}]
SHORT = Sampling(max_tokens=8)
PAGE = b"<!DOCTYPE html><html><head><title>Not Found</title></head><body>nginx</body></html>"
Say = Callable[[Asked], Said | None]


def remote(url: str | list[str], model: str | None = None, **options: Any) -> RemoteEngine:
    quick = {"attempts": 2, "outage_timeout": 2.0}
    return RemoteEngine(model, None, "test", {"base_url": url, **quick, **options})


def error(message: str, status: int = 400) -> Said:
    return Said({"error": {"message": message}}, status)


def chat_only(refusal: Said, more: Say = lambda _: None) -> Say:
    """No completions, which is said so; `more` says what else is not as usual."""

    def say(asked: Asked) -> Said | None:
        if asked.path.endswith("/v1/completions"):
            return Said(refusal.body, refusal.status)
        return more(asked) if asked.path.endswith("/chat/completions") else None

    return say


def refuses(name: str, message: str) -> Say:
    return chat_only(Said(status=404), lambda a: error(message) if name in a.body else None)


REFUSALS = {
    "no path": Said({"detail": "Not Found"}, 404),
    "a page": Said(PAGE, 404),
    "no method": Said(PAGE, 405),
    "not built": error("not implemented", 501),
    "for chats": error(
        "This is a chat model and not supported in the v1/completions endpoint", 404
    ),
    "in words": error("Completions are not supported by this model", 400),
    "wants messages": error("messages: Field required", 422),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_chats_are_chosen_where_there_is_nothing_else(refusal: Said) -> None:
    with Stranger(chat_only(refusal)) as server, remote(server.url) as engine:
        style, why = chosen_style(engine)
        assert (style, why) == ("chat", "the server has no completions")
        asked = len(server.asked)
        assert chosen_style(engine)[0] == "chat"
        assert len(server.asked) == asked  # it is remembered
        assert engine.generate([CHAT], SHORT)[0].text == "aa"
        for size in ("auto", 1):
            with remote(server.url, prompts_per_request=size) as other:
                with pytest.raises(InputError, match=r'no completions.*style="chat".*--chat'):
                    other.generate(["a text"], SHORT, errors="return")
                with pytest.raises(InputError, match=r'style="chat"'):
                    other.label_logprobs(["a text"], [" Yes", " No"])


ODD = {
    "a page": Said(PAGE),
    "an error": Said({"error": {"message": "no such endpoint"}}),
    "an error in words": Said({"error": "no such endpoint"}),
    "no choices": Said({"choices": []}),
    "500": error("this operation is not supported", 500),
    "unknown prompt": error("Unrecognized request argument: prompt"),
}


@pytest.mark.parametrize("refusal", ODD.values(), ids=ODD)
def test_what_is_no_clear_refusal_is_settled_by_a_chat(refusal: Said) -> None:
    with Stranger(chat_only(refusal)) as server, remote(server.url) as engine:
        assert chosen_style(engine)[0] == "chat"

    def neither(asked: Asked) -> Said | None:
        return Said(refusal.body, refusal.status) if asked.method == "POST" else None

    with Stranger(neither) as server, remote(server.url) as engine:
        assert chosen_style(engine)[0] == "completion"
        assert not engine.answers_chats


@pytest.mark.parametrize(
    "message",
    ["Unsupported parameter: 'max_tokens'", "max_tokens is not supported with this model",
     "extra fields not permitted", "max_tokens: unsupported; see max_completion_tokens of chat"],
)  # fmt: skip
def test_a_refused_setting_does_not_make_it_chat_only(message: str) -> None:
    def say(asked: Asked) -> Said | None:
        texts = asked.path.endswith("/v1/completions")
        return error(message) if texts and "max_tokens" in asked.body else None

    with Stranger(say) as server, remote(server.url) as engine:
        assert chosen_style(engine)[0] == "completion"


def test_completions_that_went_away_are_named() -> None:
    gone: list[bool] = []
    refused = chat_only(Said({"detail": "Not Found"}, 404))
    with Stranger(lambda a: refused(a) if gone else None) as server:
        with remote(server.url) as engine:
            assert engine.generate(["a"], SHORT)[0].text == "aa"
            gone.append(True)
            with pytest.raises(EngineGoneError, match=r'open it again.*style="chat"'):
                engine.generate(["b"], SHORT)


def test_a_stop_that_is_overlooked_is_cut() -> None:
    with Stranger() as server, remote(server.url) as engine:
        (row,) = engine.generate(["one. two"], Sampling(max_tokens=9, stop=(". ",)))
        assert (row.text, row.finish_reason) == ("one", "stop")


@pytest.mark.parametrize(
    "message",
    ["seed: Input should be less than or equal to 2147483647", "value out of range for int32",
     "seed 123 is not supported: give one below 2147483648"],
)  # fmt: skip
def test_seeds_of_31_bits_where_a_server_has_no_longer_ones(message: str) -> None:
    def say(asked: Asked) -> Said | None:
        return error(message) if asked.body.get("seed", 0) >= 2**31 else None

    sampling = Sampling(max_tokens=8, temperature=1.0, seed=3, n=2)
    with Stranger(say) as server, remote(server.url) as engine:
        rows = engine.generate(["a", "b", "c"], sampling)
        assert {len(row.samples) for row in rows} == {2}
        assert any("31 bits" in note for note in engine.info.notes)
        assert not any("no seed" in note for note in engine.info.notes)
        seeds = [one.body["seed"] for one in server.asked if "seed" in one.body]
        assert len({seed for seed in seeds if seed < 2**31}) == 6
        before = len(server.asked)
        engine.generate(["d"], sampling)
        assert all(one.body.get("seed", 0) < 2**31 for one in server.asked[before:])


def test_a_seed_that_was_dropped_is_in_the_report_and_in_later_ones(tmp_path: Path) -> None:
    def say(asked: Asked) -> Said | None:
        return error("Unsupported parameter: 'seed'") if "seed" in asked.body else None

    rows = [{"question": f"{i}?", "answer": "1"} for i in range(3)]
    with Stranger(say) as server:
        notes = []
        for _ in range(2):  # the second is answered by the store
            with open_engine(
                engine="remote", base_url=server.url, store=tmp_path / "s", revision="x"
            ) as engine:
                report = evaluate(
                    rows, engine, sampling=Sampling(temperature=1.0, seed=1, max_tokens=4)
                )
                notes.append(report.provenance["engine"]["notes"])
                stored = report.usage.from_store
        assert stored == 3
    assert all(any("no seed" in note for note in one) for one in notes)


def test_eval_of_all_agents_asks_as_the_server_can(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("question,answer\n1+1,2\n")
    command = ["eval", "--task", str(source), "--engine", "remote", "--agent", "all", "--json"]
    for say, more, paths in (
        (chat_only(Said(status=404)), [], {"chat/completions"}),
        (lambda _: None, [], {"chat/completions", "completions"}),
        (lambda _: None, ["--no-chat"], {"completions"}),
        (lambda a: error("no template") if "messages" in a.body else None, [], {"completions"}),
    ):
        with Stranger(say) as server:
            where = ["--store", "none", "-o", f'base_url="{server.url}"']
            done = CliRunner().invoke(app, [*command, *where, *more])
            assert "failed" in done.stderr or done.exit_code == 0, done.output
            long = [a for a in server.asked if a.body.get("max_tokens", 0) > 4]
            assert {a.path.removeprefix("/v1/") for a in long} == paths, done.output


def test_eval_ends_with_an_error_where_a_row_failed(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("question,answer\n1+1,2\n2+2,4\n")
    command = ["eval", "--task", str(source), "--engine", "remote", "--store", "none"]
    limits = ["--price-in", "1", "--price-out", "1", "--max-cost", "0.0000001"]

    def fails(asked: Asked) -> Said | None:
        return error("out of luck") if asked.body.get("max_tokens", 0) > 4 else None

    for say, more, reason in ((fails, [], "out of luck"), (lambda _: None, limits, "not sent")):
        with Stranger(say) as server:
            done = CliRunner().invoke(app, [*command, "-o", f'base_url="{server.url}"', *more])
        assert done.exit_code == 1
        assert "2 rows failed. The first: " in done.stderr
        assert reason in done.stderr


@pytest.mark.parametrize("status", [401, 429, 500])
def test_a_failure_is_no_answer_to_whether_there_are_completions(status: int) -> None:
    broken = [True]

    def say(asked: Asked) -> Said | None:
        completes = asked.path.endswith("/v1/completions")
        return error("not now", status) if completes and broken[0] else None

    with Stranger(say) as server, remote(server.url) as engine:
        assert chosen_style(engine)[0] == "completion"
        broken[0] = False
        assert engine.generate(["a"], SHORT)[0].text == "aa"


def test_what_is_asked_costs_a_token() -> None:
    with Stranger() as server, remote(server.url) as engine:
        before = len(server.asked)
        chosen_style(engine)
        assert all(a.body["max_tokens"] == 1 for a in server.asked[before:] if a.method == "POST")


NAMES = {
    "Qwen/Qwen3-8B-Base": "completion",
    "Llama-3-it-base": "completion",
    "google/gemma-3-1b-pt": "completion",
    "google/gemma-3-1b-it": "chat",
    "meta-llama/Llama-3.1-8B-Instruct": "chat",
    "accounts/fireworks/models/llama-v3p1-8b-instruct": "chat",
    "Qwen1.5-MoE-A2.7B-Chat-GPTQ-Int4": "chat",
    "deepseek-ai/deepseek-llm-7b-base": "completion",
    "/cache/models--Qwen--Qwen3-8B-Base/snapshots/0123456789abcdef": "completion",
    "models/it/mine": None,
    "gpt2": None,
    "italian-capital": None,
}


@pytest.mark.parametrize(("name", "style"), NAMES.items())
def test_what_a_name_says(name: str, style: str | None) -> None:
    assert style_by_name(name)[0] == style
    listed = Said(listing(id=name))
    with Stranger(lambda a: listed if a.path.endswith("/models") else None) as server:
        with remote(server.url) as engine:
            assert chosen_style(engine)[0] == (style or "completion")


def test_an_instruct_model_without_a_template_is_asked_by_texts() -> None:
    listed = Said(listing(id="mine-instruct"))

    def say(asked: Asked) -> Said | None:
        if asked.path.endswith("/models"):
            return listed
        return error("there is no chat template") if "messages" in asked.body else None

    with Stranger(say) as server, remote(server.url) as engine:
        assert chosen_style(engine) == ("completion", "the server refuses chats")


def test_servers_must_agree() -> None:
    with Stranger() as both, Stranger(chat_only(Said(status=404))) as chats:
        with remote([both.url, chats.url]) as engine:
            assert chosen_style(engine)[0] == "chat"
            assert [row.text for row in engine.generate([CHAT] * 3, SHORT)] == ["aa"] * 3
            with pytest.raises(InputError, match=f"{chats.url}.*no completions"):
                engine.generate(["a"], SHORT)


def test_engines_of_several_kinds_have_one_style() -> None:
    with Stranger() as both, Stranger(chat_only(Said(status=404))) as chats:
        with remote(both.url) as one, remote(chats.url) as other:
            assert common_style([one]) == "completion"
            assert common_style([one, other]) == "chat"
            assert common_style([one, other], "completion") == "completion"


def variant(folder: Path, **changed: Any) -> str:
    """The embedded model's files with other settings of its tokenizer."""
    folder.mkdir(parents=True)
    for file in MODEL.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    for name, settings in changed.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return str(folder)


NO_TURNS = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
LOCAL: dict[str, tuple[str, dict[str, Any]]] = {
    "anything": ("chat", {}),  # its template ends an answer with the token at which it stops
    "Qwen3-8B-Base": ("completion", {}),
    "Llama-3-it-base": ("completion", {}),
    "mine-instruct": ("chat", {"tokenizer_config": {"chat_template": NO_TURNS}}),
    "other-end": ("completion", {"tokenizer_config": {"chat_template": NO_TURNS}}),
    "none-instruct": ("completion", {"tokenizer_config": {"chat_template": None}}),
    "broken": (
        "completion",
        {"tokenizer_config": {"chat_template": "{{ raise_exception('no') }}"}},
    ),
}


@pytest.mark.parametrize("name", LOCAL)
def test_what_a_local_model_is(name: str, tmp_path: Path) -> None:
    style, changed = LOCAL[name]
    with open_engine(variant(tmp_path / name, **changed), "transformers", store=None) as engine:
        found, why = chosen_style(engine)
    assert (found, bool(why)) == (style, True)


def test_the_embedded_model_continues_texts() -> None:
    for model in (None, str(MODEL)):
        with open_engine(model, "transformers", store=None) as engine:
            assert chosen_style(engine)[0] == "completion"
            assert chosen_style(engine, "chat") == ("chat", "requested")


def test_a_server_that_takes_no_stop_and_no_seed() -> None:
    """The text is cut here, and that draws cannot be repeated is said."""

    def say(asked: Asked) -> Said | None:
        for name in ("stop", "seed"):
            if name in asked.body:
                return error(f"Unsupported parameter: '{name}' is not supported with this model.")
        return None

    talk = [{"role": "user", "content": "one. two."}]
    with Stranger(chat_only(Said(status=404), say)) as server, remote(server.url) as engine:
        sampling = Sampling(max_tokens=8, stop=(". ", "two"), temperature=1.0, seed=3)
        rows = engine.generate([talk] * 5, sampling)
        assert {row.text for row in rows} == {"one"}
        assert {row.finish_reason for row in rows} == {"stop"}
        assert any("seed" in note for note in engine.info.notes)
        before = len(server.asked)
        engine.generate([talk, CHAT], sampling)
        assert len(server.asked) - before <= 3  # known by now


def test_a_server_that_takes_four_stops() -> None:
    def say(asked: Asked) -> Said | None:
        if len(asked.body.get("stop", ())) > 4:
            return error("'stop': array too long. Expected an array with maximum length 4")
        return None

    with Stranger(chat_only(Said(status=404), say)) as server, remote(server.url) as engine:
        (row,) = engine.generate(
            [[{"role": "user", "content": "12e"}]], Sampling(stop=tuple("abcde"))
        )
        assert row.text == "12"


@pytest.mark.parametrize("silent", [False, True])
def test_a_server_that_gives_one_sample_a_request(silent: bool) -> None:
    def say(asked: Asked) -> Said | None:
        if "n" in asked.body and not silent:
            return error("Unsupported parameter: 'n'")
        return None

    with Stranger(chat_only(Said(status=404), say)) as server, remote(server.url) as engine:
        sampling = Sampling(max_tokens=8, temperature=1.0, n=6)
        (row,) = engine.generate([CHAT], sampling)
        assert [sample.text for sample in row.samples] == ["aa"] * 6
        before = len(server.asked)
        (row, _) = engine.generate([[{"role": "user", "content": "b"}], CHAT], sampling)
        assert len(row.samples) == 6
        assert len(server.asked) - before == 12


def weighed(most: int = 20) -> Say:
    """Log-probabilities of the first token of an answer, `most` at most."""

    def say(asked: Asked) -> Said | None:
        wanted = asked.body.get("top_logprobs", 0)
        if wanted > most:
            return error(f"top_logprobs: {wanted} is more than {most}, unsupported")
        if not asked.body.get("logprobs"):
            return None
        top = [{"token": t, "logprob": p} for t, p in (("Yes", -0.2), ("No", -2.0), ("So", -4.0))]
        place = {**top[0], "top_logprobs": top[:wanted]}
        message = {"role": "assistant", "content": "Yes"}
        one = {"index": 0, "finish_reason": "stop", "message": message}
        return Said(reply(one | {"logprobs": {"content": [place]}}))

    return say


@pytest.mark.parametrize("most", [20, 5])
def test_labels_are_weighed_by_the_likeliest_tokens(most: int) -> None:
    with Stranger(chat_only(Said(status=404), weighed(most))) as server:
        with remote(server.url) as engine:
            scores = engine.label_logprobs([CHAT], ["Yes", "No", "Never"])
            assert scores.logprobs[0, :2].tolist() == [-0.2, -2.0]
            assert scores.missing[0].tolist() == [False, False, True]
            assert scores.upper[0, 2] < -1.5
            assert engine.has_logprobs(chats=True)


@pytest.mark.parametrize(
    "more",
    [refuses("logprobs", "logprobs are not supported"), chat_only(Said(status=404))],
    ids=["refused", "left out"],
)
def test_labels_where_there_are_no_log_probabilities(more: Say) -> None:
    with Stranger(more) as server, remote(server.url) as engine:
        assert not engine.has_logprobs(chats=True)
        scores = engine.label_logprobs([CHAT] * 2, ["Yes", "No"], errors="return")
        assert all("log-probabilities" in str(reason) for reason in scores.errors)


def test_a_temperature_that_is_refused_says_what_to_give() -> None:
    said = "Unsupported value: 'temperature' does not support 0.0 with this model"
    more = chat_only(
        Said(status=404), lambda a: error(said) if a.body.get("temperature") == 0 else None
    )
    with Stranger(more) as server, remote(server.url) as engine:
        assert chosen_style(engine)[0] == "chat"
        (row,) = engine.generate([CHAT], SHORT, errors="return")
        assert "temperature=1.0" in str(row.error)
        assert engine.generate([CHAT], Sampling(max_tokens=8, temperature=1.0))[0].text == "aa"


def test_one_of_a_hundred_models() -> None:
    cards = {"data": [{"id": f"maker/model-{i}", "object": "model"} for i in range(100)]}
    say = chat_only(Said(status=404))

    def hundred(asked: Asked) -> Said | None:
        return Said(cards) if asked.path.endswith("/models") else say(asked)

    with Stranger(hundred) as server:
        with pytest.raises(InputError, match=r"92 others.*model=") as caught:
            remote(server.url)
        assert len(str(caught.value)) < 400
        with pytest.raises(InputError, match="maker/model-7") as caught:
            remote(server.url, "maker/modl-7")
        assert len(str(caught.value)) < 400
        with remote(server.url, "maker/model-7") as engine:
            assert chosen_style(engine)[0] == "chat"


def test_without_a_list_of_models() -> None:
    say = chat_only(Said(status=404))

    def none(asked: Asked) -> Said | None:
        return Said(PAGE, 404) if asked.method == "GET" else say(asked)

    with Stranger(none) as server, remote(server.url, "m") as engine:
        assert chosen_style(engine)[0] == "chat"
        assert engine.generate([CHAT], SHORT)[0].text == "aa"


def test_check_server_names_a_key_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_API_KEY", "sk-wrong")
    said = error("This key of yours has no right to generate anything. " * 9, 403)
    with Stranger(lambda a: said if a.method == "POST" else None) as server:
        done = CliRunner().invoke(app, ["check-server", server.url, "--json"])
    assert done.exit_code == 1
    checks = {one["what"]: one for one in json.loads(done.stdout)}
    for what in ("completion", "chat"):
        assert checks[what]["remedy"] == "put the right key in WORKBENCH_API_KEY"
        assert checks[what]["seen"].endswith(" …")


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("key", [None, "sk-secret-of-mine"])
def test_a_key_is_asked_for_by_its_name(
    status: int, key: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    if key:
        monkeypatch.setenv("WORKBENCH_API_KEY", key)
    wrong = f"Incorrect API key provided: {key}. " + "You can find yours on our page. " * 20
    closed = [True]

    def say(asked: Asked) -> Said | None:
        return error(wrong, status) if closed[0] else plain_answer(asked)

    need = r"WORKBENCH_API_KEY \(environment or \.env file\)"
    with Stranger(say) as server:
        with pytest.raises(EngineUnavailableError, match=need) as caught:
            remote(server.url)
        assert "sk-secret" not in str(caught.value)
        closed[0] = False
        with remote(server.url) as engine:
            closed[0] = True
            with pytest.raises((EngineGoneError, EngineError), match=need) as gone:
                engine.generate([CHAT], SHORT)
            assert "sk-secret" not in str(gone.value)


@pytest.fixture(scope="module", params=["with log-probabilities", "without"])
def chats(request: pytest.FixtureRequest, _server: Server) -> Iterator[Stranger]:
    given = request.param != "without"
    with chat_api(_server.url, SERVER_KEY, logprobs=given) as server:
        yield server


def test_check_server_tries_chats(chats: Stranger) -> None:
    done = CliRunner().invoke(app, ["check-server", chats.url])
    assert done.exit_code == 0, done.output
    works = {line.split("  ")[0]: " yes " in line for line in done.output.splitlines()}
    assert [works[what] for what in ("chat", "latency", "completion")] == [True, True, False]


def closed(status: int | None, _: Asked) -> Said | None:
    return error("no", status) if status else None


def test_check_server_fails_where_nothing_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def say(asked: Asked) -> Said | None:
        return error("no such model is running", 400) if asked.method == "POST" else None

    with Stranger(say) as server:
        done = CliRunner().invoke(app, ["check-server", server.url])
    assert done.exit_code == 1, done.output
    monkeypatch.setenv("WORKBENCH_API_KEY", "sk-wrong")
    for status in (401, 403, None):
        with Stranger(partial(closed, status)) as server:
            url = server.url if status else "http://127.0.0.1:9/v1"
            done = CliRunner().invoke(app, ["check-server", url])
        assert done.exit_code == 2, done.output
        assert len(done.output.strip().splitlines()) == 1
        assert ("WORKBENCH_API_KEY" in done.output) is (status is not None)
        assert "sk-wrong" not in done.output


def test_what_is_missing_is_named_with_how_to_install_it(
    lacks: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORKBENCH_BASE_URL", raising=False)
    lacks("vllm", "vllm is not installed here")
    lacks("transformers", "torch is not installed")
    with pytest.raises(EngineUnavailableError, match=r"make setup|pip install") as caught:
        open_engine(store=None)
    assert install_hint() in str(caught.value)
    lacks("vllm", "no GPU")
    lacks("transformers", "no memory")
    with pytest.raises(EngineUnavailableError, match="no GPU") as caught:
        open_engine(store=None)
    assert "install" not in str(caught.value)


def test_what_could_never_take_over_is_not_mentioned(
    lacks: Callable[[str, str], None], plain: VLLMEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> NoReturn:
        raise EngineGoneError("out of luck")

    lacks("transformers", "torch is not installed")
    monkeypatch.setattr(VLLMEngine, "_complete", dies)
    with open_engine(store=None) as engine, pytest.raises(EngineGoneError) as caught:
        engine.generate(["a"], SHORT)
    assert str(caught.value) == "out of luck"


def test_all_agents_answer_over_chats(chats: Stranger) -> None:
    with remote(chats.url) as engine:
        suite = run_suite(open_task("word_problems"), engine, [*AGENTS], count=4)
        assert {report.provenance["style"] for report in suite.values()} == {"chat"}
        for name, report in suite.items():
            errors = report.rows["error"].dropna()
            if name == "best_of_n":  # its verifier needs the probability of a word
                assert errors.str.contains("log-probabilities|likeliest").all()
            else:
                assert errors.empty, errors


def test_judges_and_uncertainty_over_chats(chats: Stranger) -> None:
    case = Case("What is 2 + 2?", "The answer is 4.", "4")
    with remote(chats.url) as engine:
        for template in (None, builtin("tiny")):
            report = Judge(engine, template).pointwise([case] * 2)
            assert report.rows["error"].isna().all()
        asked = sample_uncertainty(open_task("word_problems"), engine, 4, samples=3)
        assert asked.rows["error"].isna().all()
        assert asked.rows["clusters"].notna().all()
        given = engine.has_logprobs(chats=True)
        assert asked.rows["mean_logprob"].notna().all() == given
        options = [open_choices("options")]
        if given:
            assert elicit(options, [engine], ["base"], count=30).rows["error"].isna().any()
        else:
            with pytest.raises(EngineError, match="returns no log-probabilities"):
                elicit(options, [engine], ["base"], count=4)


LONGER = ("03", "04", "06")
SMALL: dict[str, dict[str, Any]] = {
    "01_quickstart": {"count": 12},
    "03_accuracy": {"count": 8, "beside": 4, "gsm8k": 2},
    "04_judge": {"count": 16, "turns": 1, "top_k": None},
    "06_uncertainty": {"count": 120, "few": 80, "free": 10, "samples": 3},
    "09_agents": {"count": 4},
    "10_your_own_data": {"count": 4},
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=pytest.mark.slow if one[:2] in LONGER else ()) for one in SMALL],
)
def test_notebooks_run_on_a_chat_only_api(name: str, chats: Stranger, tmp_path: Path) -> None:
    notebook = Path(__file__).parents[1] / "notebooks" / f"{name}.ipynb"
    settings = {"engine": "remote", "base_url": chats.url, **SMALL[name]}
    done = run([notebook], tmp_path, settings, say=lambda _: None).iloc[0]
    with remote(chats.url) as engine:
        given = engine.has_logprobs(chats=True)
    if name == "06_uncertainty" and not given:  # it is about the probabilities of letters
        assert "returns no log-probabilities" in done["detail"]
    else:
        assert done["status"] == "ok", done["detail"]
