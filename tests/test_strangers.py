"""The remote engine among other people's servers: whatever they send, answers stay as they came.

What cannot be read ends as a failed row or an error of ours, and never as somebody else's answer.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import math
import resource
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stranger import Asked, Said, Stranger, choice, listing, plain, prompts_of, reply

from benchmarks.injector import Faults, Injector
from workbench import Sampling, open_engine
from workbench.engines.remote import RemoteEngine, wire
from workbench.engines.remote.http import is_loopback, proxy_of, redactor
from workbench.engines.remote.retry import RejectedError
from workbench.errors import EngineError, EngineUnavailableError, InputError
from workbench.serving.check import check
from workbench.store import Store
from workbench.types import Completion, Message

SHORT = Sampling(max_tokens=8)
CHAT: list[list[Message]] = [[{"role": "user", "content": "hello"}]]
QUICK: dict[str, Any] = {"attempts": 2, "timeout": 5.0, "outage_timeout": 5.0}


def remote(url: str | list[str], store: Store | None = None, **options: Any) -> RemoteEngine:
    return RemoteEngine(None, store, "test", {"base_url": url, **QUICK, **options})


def on_post(make: Callable[[Asked], Said | None]) -> Callable[[Asked], Said | None]:
    """Says what `make` does to a request for an answer."""
    return lambda asked: make(asked) if asked.method == "POST" else None


def of_a(asked: Asked) -> bool:
    return asked.body.get("prompt") == "a"


def only_to_a(said: Said) -> Callable[[Asked], Said | None]:
    return lambda asked: said if of_a(asked) else None


def answers(say: Callable[[Asked], Said | None], prompts: Any = ("a",), **options: Any) -> Any:
    with Stranger(on_post(say)) as server, remote(server.url, **options) as engine:
        return engine.generate(list(prompts), SHORT, errors="return")


# -- keys


@pytest.mark.parametrize("key", ["EMPTY", "test", "1", "text", "none", "index"])
def test_a_placeholder_key_never_changes_an_answer(
    monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("WORKBENCH_API_KEY", key)
    said = f"The list is {key} now, 1 test"
    with (
        Stranger(on_post(lambda _: Said(reply(choice(said))))) as server,
        remote(server.url) as engine,
    ):
        assert engine.generate(["a"], SHORT)[0].text == said
        assert server.asked[0].headers["authorization"] == f"Bearer {key}"


@pytest.mark.parametrize(
    "echo",
    [
        "sk-a/b+c=d&e", r"sk-a\/b+c=d&e", "sk-a%2Fb%2Bc%3Dd%26e", "sk-a/b+c=d&amp;e",
        r"sk-a\u002fb\u002Bc=d\u0026e", "sk-a&#47;b&#x2b;c=d&e",
    ],
)  # fmt: skip
def test_a_key_is_taken_out_of_what_a_server_says_however_it_is_escaped(
    monkeypatch: pytest.MonkeyPatch, echo: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "workbench")
    monkeypatch.setenv("WORKBENCH_API_KEY", "sk-a/b+c=d&e")
    long = "x" * 280  # where an error is cut, a part of the key must not be left
    bodies: list[Any] = [
        {"error": {"message": f"bad key {echo}"}},
        f"<p>{long} {echo} {echo}</p>".encode(),
        [f"{long}{echo}"],
        reply(choice(None) | {"text": {"odd": f"{long}{echo}"}}),
    ]
    for status in (200, 400, 500):
        for body in bodies:
            (row,) = answers(only_to_a(Said(body, status)), attempts=1)
            assert row.error is not None
            assert "sk-a" not in row.error, row.error
    assert "sk-a" not in caplog.text


def test_short_keys_are_words_of_their_own() -> None:
    clean = redactor(["test", "1"])
    assert clean("the latest of 12 is test 1, or 'test'") == "the latest of 12 is … …, or '…'"
    assert redactor([])("a\n b") == "a b"


def test_no_key_sends_none_and_headers_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AZURE_KEY", "sk-azure-secret")
    for transport in ("aiohttp", "threads"):
        with (
            Stranger(on_post(lambda a: Said(reply(choice(a.headers["api-key"]))))) as server,
            remote(server.url, headers={"api-key": "AZURE_KEY"}, transport=transport) as engine,
        ):
            assert engine.generate(["a"], SHORT)[0].text == "sk-azure-secret"  # its own words
            assert "authorization" not in {name for a in server.asked for name in a.headers}
            assert "azure-secret" not in repr((vars(engine), engine.info, engine._options))
    with pytest.raises(InputError, match="NAME of a variable") as caught:
        remote("http://127.0.0.1:9", headers={"api-key": "sk-pasted-by-mistake"})
    assert "pasted" not in str(caught.value)
    with pytest.raises(InputError, match="headers must be") as caught:
        remote("http://127.0.0.1:9", headers=["sk-pasted-by-mistake"])
    assert "pasted" not in str(caught.value)


# -- answers as they came


def message(content: object, **more: Any) -> dict[str, Any]:
    return {"index": 0, "finish_reason": "stop", "message": {"content": content, **more}}


@pytest.mark.parametrize(
    ("content", "text", "reasoning"),
    [
        ([{"type": "text", "text": "4"}, {"type": "text", "text": "2"}], "42", None),
        ([{"type": "thinking", "thinking": "6×7"}, {"type": "text", "text": "42"}], "42", "6×7"),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, "42"], "42", "hm"),
        ([{"type": "reasoning", "text": "hm"}, {"type": "output_text", "text": "42"}], "42", "hm"),
        ([{"type": "thinking", "signature": "x"}, {"text": "42"}], "42", None),
        ([], "", None),
        ("half \ud83d", "half \ufffd", None),
    ],
)
def test_content_in_parts(content: object, text: str, reasoning: str | None) -> None:
    row = wire.read(message(content), SHORT, wire.TokenCounts())
    assert (row.text, row.reasoning, row.error) == (text, reasoning, None)


@pytest.mark.parametrize(
    "content", [{"text": "42"}, 42, True, [{"type": "image_url"}], [7], [{"type": "text"}]]
)
def test_content_that_is_no_text_is_malformed(content: object) -> None:
    with Stranger(on_post(lambda _: Said(reply(message(content))))) as server:
        with remote(server.url) as engine:
            (row,) = engine.generate(CHAT, SHORT, errors="return")
    assert "malformed" in str(row.error)
    assert row.text == ""


@pytest.mark.parametrize(
    "odd", [{"effort": "high"}, [{"summary": [{"text": "hm"}]}], 3, [[[]]], {"text": None}]
)
def test_thoughts_in_odd_forms_cost_no_answer(odd: object) -> None:
    row = wire.read(message("42", reasoning=odd), SHORT, wire.TokenCounts())
    assert (row.text, row.error) == ("42", None)


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("stop", "stop"), ("eos", "stop"), ("eos_token", "stop"), ("end_turn", "stop"),
        ("stop_sequence", "stop"), ("STOP", "stop"), ("MAX_TOKENS", "length"),
        ("model_length", "length"), ("max_output_tokens", "length"), ("length", "length"),
        (None, "stop"), ("", "stop"), ("whatever", "stop"), (7, "stop"),
        ("content_filter", "error"), ("SAFETY", "error"), ("tool_calls", "error"),
        ("function_call", "error"), ("error", "error"), ("abort", "error"),
        ("repetition", "error"), ("PROHIBITED_CONTENT", "error"),
    ],
)  # fmt: skip
def test_how_answers_end(reason: object, finish: str) -> None:
    notes: list[str] = []
    row = wire.read(choice("text", finish_reason=reason), SHORT, wire.TokenCounts(), notes.append)
    assert (row.finish_reason, row.text) == (finish, "text")  # and what there was is kept
    assert (row.error is None) == (finish != "error")
    assert bool(notes) == (reason in (None, "", "whatever", 7))
    empty = wire.read(choice("", finish_reason=reason), SHORT, wire.TokenCounts())
    known = reason not in (None, "", "whatever", 7) and finish != "error"
    assert (empty.error is None) == known


def test_an_odd_ending_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    def say(asked: Asked) -> Said:
        found = [choice(f"{p}!", i, finish_reason=None) for i, p in enumerate(asked.body["prompt"])]
        return Said(reply(*found))

    with Stranger(on_post(lambda a: say(a) if isinstance(a.body["prompt"], list) else None)) as s:
        with remote(s.url) as engine:
            rows = engine.generate([f"q{i}" for i in range(40)], SHORT)
            assert [row.text for row in rows] == [f"q{i}!" for i in range(40)]
            assert len([note for note in engine.info.notes if "finish_reason" in note]) == 1
    assert caplog.text.count("finish_reason=None") == 1


@pytest.mark.parametrize(
    "usage",
    [
        [], "12", 3, True, {"prompt_tokens": -4, "completion_tokens": "9"},
        {"prompt_tokens": 1e308, "completion_tokens": math.nan},
        {"prompt_tokens": 10**30, "completion_tokens": 2.5, "prompt_tokens_details": [1]},
        {"prompt_tokens": True, "prompt_tokens_details": {"cached_tokens": -1}},
        {"prompt_tokens": math.inf, "completion_tokens": [[]]},
    ],
)  # fmt: skip
def test_a_malformed_bill_costs_no_answer(usage: object) -> None:
    (row,) = answers(lambda _: Said(reply(choice("42"), usage=usage)))
    assert (row.text, row.error) == ("42", None)
    assert (row.prompt_tokens, row.completion_tokens, row.cached_tokens) == (0, 0, None)


def test_good_counts_are_counted() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 2.0}
    (row,) = answers(lambda _: Said(reply(choice("42"), usage=usage)))
    assert (row.prompt_tokens, row.completion_tokens) == (5, 2)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.5, True, "x", None, 1e9])
def test_a_log_probability_that_is_none_fails_its_row(value: object) -> None:
    logprobs = {"tokens": ["a"], "token_logprobs": [value], "top_logprobs": None}
    with pytest.raises(RejectedError, match="log-prob"):
        wire.logprobs(choice("a", logprobs=logprobs))


# -- whatever comes, rows stay rows


def deep(_: Asked) -> Said:
    return Said(b"[" * 200_000 + b"]" * 200_000)


def deep_inside(_: Asked) -> Said:
    return Said(b'{"choices": [{"text": ' + b"[" * 50_000 + b"]" * 50_000 + b"}]}")


def huge_number(_: Asked) -> Said:
    return Said(b'{"choices": [{"text": "a", "index": 1e400, "finish_reason": "stop"}]}')


def not_gzip(_: Asked) -> Said:
    return Said(reply(choice("a")), headers={"Content-Encoding": "gzip"})


def unknown_packing(_: Asked) -> Said:
    return Said(reply(choice("a")), headers={"Content-Encoding": "br"})


def cut_gzip(_: Asked) -> Said:
    body = gzip.compress(json.dumps(reply(choice("a" * 5000))).encode())
    return Said(body[: len(body) // 2], headers={"Content-Encoding": "gzip"})


def circle(asked: Asked) -> Said:
    return Said(status=307, headers={"Location": asked.path})


def no_status(_: Asked) -> Said:
    return Said(b"", status=999)


def half_a_character(_: Asked) -> Said:
    return Said(b'{"choices": "\xff\xfe"}')


def bare_values(_: Asked) -> Said:
    return Said(b"null")


def wrong_choices(_: Asked) -> Said:
    return Said({"choices": {"0": {}}, "model": ["m"], "usage": 1})


def choice_is_null(_: Asked) -> Said:
    return Said({"choices": [None]})


def logprobs_odd(_: Asked) -> Said:
    return Said(reply(choice("a", index=True)))


HOSTILE = [
    deep, deep_inside, huge_number, not_gzip, unknown_packing, cut_gzip, circle,
    no_status, half_a_character, bare_values, wrong_choices, choice_is_null,
]  # fmt: skip


@pytest.mark.parametrize("transport", ["aiohttp", "threads"])
@pytest.mark.parametrize("say", HOSTILE, ids=lambda say: say.__name__)
def test_whatever_a_server_sends_is_a_failed_row(
    say: Callable[[Asked], Said], transport: str
) -> None:
    prompts = ["a", "bad", "c"]

    def sometimes(asked: Asked) -> Said | None:
        return say(asked) if "bad" in str(asked.body.get("prompt")) else None

    found = answers(sometimes, prompts, transport=transport)
    assert [row.text for row in found] == ["aa", "", "cc"]
    assert [row.error is None for row in found] == [True, False, True]


@pytest.mark.parametrize("say", HOSTILE, ids=lambda say: say.__name__)
def test_and_an_error_where_the_models_are_asked_for(say: Callable[[Asked], Said]) -> None:
    with Stranger(lambda asked: say(asked) if asked.method == "GET" else None) as server:
        with pytest.raises((EngineUnavailableError, InputError)):
            remote(server.url)


@pytest.mark.parametrize(
    "card",
    [
        {"max_model_len": 1e400}, {"max_model_len": -5}, {"max_model_len": True},
        {"root": {"a": 1}, "max_model_len": "many"}, {"owned_by": ["vllm"]}, {"owned_by": None},
    ],
)  # fmt: skip
def test_a_list_of_models_with_odd_cards(card: dict[str, Any]) -> None:
    with Stranger(lambda a: Said(listing(**card)) if a.path == "/v1/models" else None) as server:
        with remote(server.url) as engine:
            assert engine.info.context_length == 0
            assert engine.generate(["a"], SHORT)[0].text == "aa"


def test_counters_that_are_none_cost_nothing() -> None:
    """A vLLM whose page of counters is not to be trusted."""
    page = 'vllm:prefix_cache_hits_total{engine="0"} NaN\n'

    def say(asked: Asked) -> Said | None:
        if asked.path == "/metrics":
            return Said(page.encode())
        if asked.path == "/v1/models":
            return Said(listing(owned_by="vllm"))
        return None

    with Stranger(say) as server, remote(server.url) as engine:
        assert engine.generate(["a"], SHORT)[0].text == "aa"
        assert engine.usage.cached_tokens is None


@pytest.mark.parametrize("packed", [True, False])
def test_a_bomb_costs_no_memory(packed: bool) -> None:
    def bomb() -> Iterator[bytes]:
        packer = zlib.compressobj(9, wbits=31)
        zeros = bytes(2**20)
        for _ in range(400):
            yield packer.compress(zeros) if packed else zeros

    def say(asked: Asked) -> Said | None:
        if asked.body.get("prompt") != "bad":
            return None
        return Said(bomb(), headers={"Content-Encoding": "gzip"} if packed else {})

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = answers(say, ["bad", "a"], prompts_per_request=1, attempts=1, timeout=60.0)
    assert "more than 64 MB" in str(rows[0].error)
    assert rows[1].text == "aa"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300 * 1024  # KB: the body as it came, and once more joined


def test_with_several_servers_the_others_go_on() -> None:
    with Stranger(on_post(deep)) as bad, Stranger() as good:
        with remote([good.url, bad.url], prompts_per_request=1, attempts=12) as engine:
            rows = engine.generate([f"q{i}" for i in range(30)], SHORT)
    assert [row.text for row in rows] == [f"q{i}" * 2 for i in range(30)]


# -- servers that ask to wait


def busy(wait: str | None) -> Callable[[Asked], Said | None]:
    headers = {} if wait is None else {"Retry-After": wait}
    said = {"error": {"message": "Daily quota is used up"}}

    def mine(asked: Asked) -> bool:  # and not what is asked at opening
        return prompts_of(asked.body)[0].startswith(("q", "a"))

    return on_post(lambda a: Said(said, 429, dict(headers)) if mine(a) else None)


def test_a_server_that_asks_to_wait_for_a_year_is_left_to_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Stranger(busy("31536000")) as one, Stranger() as two:
        with remote([one.url, two.url], prompts_per_request=1) as engine:
            start = time.monotonic()
            rows = engine.generate([f"q{i}" for i in range(30)], SHORT)
            assert time.monotonic() - start < 5
    assert [row.text for row in rows] == [f"q{i}" * 2 for i in range(30)]
    assert caplog.text.count("is left out: it asks for a wait of 31536000 s") == 1
    with Stranger(busy("31536000")) as one, remote(one.url) as engine:
        with pytest.raises(EngineError, match=r"asks for a wait of 31536000 s.*Daily quota"):
            engine.generate(["a"], SHORT)


def test_another_servers_slots_are_used_while_one_rests() -> None:
    with Stranger(busy("60")) as one, Stranger() as two:
        with remote([one.url, two.url], prompts_per_request=1) as engine:
            start = time.monotonic()
            rows = engine.generate([f"q{i}" for i in range(60)], SHORT)
            assert time.monotonic() - start < 10
        assert [row.text for row in rows] == [f"q{i}" * 2 for i in range(60)]
        assert sum(a.body.get("prompt", "").startswith("q") for a in one.asked) <= 10


def test_nothing_but_429_ends_after_a_stated_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("workbench.engines.remote.dispatch.LONG", 0.5)
    said = r"for \d+ s it has answered nothing but HTTP 429: Daily quota is used up.*outage_"
    with Stranger(busy(None)) as server, remote(server.url, outage_timeout=2.0) as engine:
        start = time.monotonic()
        with pytest.raises(EngineError, match=said):
            engine.generate([f"q{i}" for i in range(20)], SHORT)
        assert 2 < time.monotonic() - start < 12
    assert caplog.text.count("answers nothing but HTTP 429: Daily quota") == 1


# -- servers as they are


@pytest.mark.parametrize(
    ("takes", "said"),
    [
        (
            "max_completion_tokens",
            "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        ),
        ("max_completion_tokens", "max_tokens: Extra inputs are not permitted"),
        ("max_tokens", None),
    ],
)
def test_the_limit_on_tokens_has_the_name_that_the_server_wants(
    takes: str, said: str | None
) -> None:
    def say(asked: Asked) -> Said | None:
        if takes in asked.body or "messages" not in asked.body:
            return None
        return Said({"error": {"message": said}}, 400)

    chats = [[{"role": "user", "content": f"q{i}"}] for i in range(12)]
    with Stranger(on_post(say)) as server, remote(server.url, prompts_per_request=1) as engine:
        before = len(server.asked)
        for _ in range(2):
            rows = engine.generate(chats, SHORT)
            assert [row.text for row in rows] == [f"q{i}" * 2 for i in range(12)]
        last = [a.body for a in server.asked if "messages" in a.body][-12:]
        assert all(body[takes] == 8 for body in last)  # learned once
        assert len(server.asked) - before <= 12 * 3 + 2


def test_a_limit_that_is_too_large_is_not_about_its_name() -> None:
    said = {"error": {"message": "max_tokens is too large: 8. It may be 4 at most"}}
    with Stranger(on_post(lambda a: Said(said, 400))) as server, remote(server.url) as engine:
        before = len(server.asked)
        (row,) = engine.generate(CHAT, SHORT, errors="return")
        assert "too large" in str(row.error)
        assert len(server.asked) - before <= 2  # perhaps its models, and the request


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("Unsupported value: 'temperature' does not support 0.0 with this model.", "temperature=1"),
        ("Unsupported parameter: 'stop' is not supported with this model.", "leave `stop` out"),
    ],
)
def test_a_refused_setting_says_what_to_do(said: str, remedy: str) -> None:
    with Stranger(on_post(lambda _: Said({"error": {"message": said}}, 400))) as server:
        with remote(server.url) as engine:
            (row,) = engine.generate(CHAT, Sampling(stop=("x",)), errors="return")
    assert said in str(row.error)
    assert remedy in str(row.error)


@pytest.mark.parametrize("status", [403, 404, 405, 501])
def test_a_list_of_models_that_is_missing_is_no_obstacle(status: int) -> None:
    with Stranger(lambda a: Said(status=status) if a.method == "GET" else None) as server:
        with RemoteEngine("m", None, "test", {"base_url": server.url}) as engine:
            assert engine.generate(["a"], SHORT)[0].text == "aa"
            assert engine.generate(["b"], SHORT)[0].text == "bb"
        with pytest.raises(EngineUnavailableError):
            remote(server.url)  # but which model?


def test_a_wrong_path_is_reported_also_where_a_model_is_named() -> None:
    with Stranger(lambda _: Said(status=404)) as server:
        with pytest.raises(EngineUnavailableError, match="no OpenAI-compatible server"):
            RemoteEngine("m", None, "test", {"base_url": server.url, **QUICK})


def test_a_query_in_the_url_is_kept_and_not_shown() -> None:
    with Stranger() as server:
        url = f"{server.url}/deployments/m?api-version=2026-01-01"
        with RemoteEngine("m", None, "test", {"base_url": url, **QUICK}) as engine:
            engine.generate(["a"], SHORT)
            assert "api-version" not in engine.info.device
        assert all(a.path.endswith("?api-version=2026-01-01") for a in server.asked)
        assert server.asked[-1].path.startswith("/v1/deployments/m/completions?")


def test_loopback_never_goes_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with Stranger(lambda _: Said(status=407)) as proxy, Stranger() as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url.replace("http://", "http://me:hush@")[:-3])
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        for transport in ("aiohttp", "threads"):
            with remote(server.url, transport=transport) as engine:
                assert engine.generate(["a"], SHORT)[0].text == "aa"
            assert not proxy.asked
            with pytest.raises(EngineUnavailableError, match=r"through the proxy 127") as caught:
                remote("http://models.example:8000/v1", transport=transport)
            assert "hush" not in str(caught.value)
            proxy.asked.clear()


def test_what_is_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = ("127.0.0.1", "127.8.9.1", "localhost", "a.localhost", "::1", "0.0.0.0", "LOCALHOST.")
    assert all(map(is_loopback, hosts))
    assert not any(map(is_loopback, ("10.0.0.1", "example.com", "localhost.com", "", None)))
    monkeypatch.setenv("https_proxy", "http://u:p@proxy.example:3128")
    monkeypatch.setenv("no_proxy", "inside.example")
    assert proxy_of("https://api.example/v1") == "proxy.example:3128"
    assert proxy_of("https://inside.example/v1") is None


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("transport", ["aiohttp", "threads"])
def test_a_redirect_to_another_server_is_refused(status: int, transport: str) -> None:
    with Stranger() as elsewhere:
        away = {"Location": f"{elsewhere.url}/completions"}
        moved = Said(status=status, headers=away)
        with Stranger(on_post(lambda a: moved if of_a(a) else None)) as server:
            with (
                remote(server.url, transport=transport) as engine,
                pytest.raises(EngineError, match=r"redirects to http://127\.0\.0\.1:") as caught,
            ):
                engine.generate(["a"], SHORT)
            assert "base_url" in str(caught.value)
            server.say = lambda _: Said(status=status, headers=dict(away))
            with pytest.raises(EngineUnavailableError, match="another server"):
                remote(server.url, transport=transport)
        assert not elsewhere.asked


def test_a_redirect_on_the_same_server_is_followed_where_it_keeps_the_method() -> None:
    def say(asked: Asked) -> Said | None:
        if asked.path.startswith("/v1/"):
            return Said(status=307, headers={"Location": "/v2/" + asked.path[4:]})
        return plain(Asked(asked.method, "/v1/" + asked.path[4:], asked.headers, asked.body))

    with Stranger(say) as server, remote(server.url) as engine:
        assert engine.generate(["a"], SHORT)[0].text == "aa"


# -- another model's answer


def test_an_answer_of_another_model_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    with Stranger(on_post(lambda _: Said(reply(choice("42"), model="m-small")))) as server:
        with remote(server.url) as engine:
            engine.generate(["a"], SHORT)
            engine.generate(["b"], SHORT)
            assert "asked for 'm', answered by 'm-small'" in engine.info.notes
    assert caplog.text.count("answered by 'm-small'") == 1


def test_without_revision_and_log_probabilities_nothing_is_stored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in ("first", "second"):
        with (
            Stranger(on_post(lambda _, n=number: Said(reply(choice(n))))) as server,  # type: ignore[misc]
            open_engine(
                engine="remote", base_url=server.url, store=tmp_path / "s.sqlite", **QUICK
            ) as engine,
        ):
            assert engine.generate(["a"], SHORT)[0].text == number
            assert engine.info.revision == "not reported"
            assert any("the store is off" in note for note in engine.info.notes)
    assert len(Store(tmp_path / "s.sqlite")) == 0
    assert caplog.text.count("the store is off") == 2  # once an engine


def test_who_knows_the_weights_may_say_so(tmp_path: Path) -> None:
    with Stranger() as server:

        def ask(revision: str) -> Completion:
            options = {"base_url": server.url, "revision": revision, **QUICK}
            with open_engine(engine="remote", store=tmp_path / "s.sqlite", **options) as engine:
                assert engine.info.revision == revision
                return engine.generate(["a"], SHORT)[0]

        assert [ask(r).from_store for r in ("may", "may", "june")] == [False, True, False]


def weigh(tmp_path: Path, url: str | list[str], **options: Any) -> RemoteEngine:
    given = {"base_url": url, **QUICK, **options}
    return RemoteEngine(None, Store(tmp_path / "s.sqlite"), "test", given)


def test_a_path_is_no_identity(tmp_path: Path) -> None:
    """Monday's weights, Tuesday's under the same path, and another server with the same path."""
    monday = Injector(root="/models/ckpt", weights=1)
    with monday:
        with weigh(tmp_path, monday.url) as engine:
            first = engine.info.revision
            assert first.startswith("fingerprint ")
            assert not engine.generate(["a"], SHORT)[0].from_store
            assert not engine.label_logprobs(["a"], ["x", "y"]).missing.any()
        with weigh(tmp_path, monday.url) as engine:
            assert engine.info.revision == first
            assert engine.generate(["a"], SHORT)[0].from_store
        monday.stop()
        monday._weights = 2  # Tuesday
        monday.start()
        with weigh(tmp_path, monday.url) as engine:
            assert engine.info.revision != first
            assert not engine.generate(["a"], SHORT)[0].from_store
    with Injector(root="/models/ckpt", weights=1) as other, weigh(tmp_path, other.url) as engine:
        assert not engine.generate(["a"], SHORT)[0].from_store


@pytest.mark.parametrize("noise", [0.0, 1e-5, 0.01])
def test_noise_is_no_other_model(tmp_path: Path, noise: float) -> None:
    names = set()
    for day in range(4):
        with Noisy(noise, day) as server, weigh_at(tmp_path, server) as engine:
            names.add(engine.info.revision)
    assert len(names) == 1
    with Noisy(noise, 9, shift=0.2) as server, weigh_at(tmp_path, server) as engine:
        assert engine.info.revision not in names


class Noisy(Stranger):
    """Its log-probabilities follow from the prompt, with a little noise; always on one port."""

    port = 0

    def __init__(self, noise: float, day: int, shift: float = 0.0) -> None:
        super().__init__(self._say)
        self._noise, self._day, self._shift = noise, day, shift
        self._port = Noisy.port

    def start(self) -> None:
        super().start()
        Noisy.port = self._port

    def _say(self, asked: Asked) -> Said | None:
        if asked.method == "GET" or not isinstance(asked.body.get("prompt"), str):
            return None
        top = {}
        for token in range(asked.body.get("logprobs") or 0):
            value = zlib.crc32(f"{asked.body['prompt']}{token}".encode()) % 1000 / 200
            drawn = zlib.crc32(f"{value}{self._day}{len(self.asked)}".encode()) % 1000 / 1000
            top[f"t{token}"] = -1 - value - self._shift + self._noise * (drawn - 0.5)
        shown = {"tokens": ["t0"], "token_logprobs": [top.get("t0", -1.0)], "top_logprobs": [top]}
        return Said(reply(choice("t0", logprobs=shown)))


def weigh_at(tmp_path: Path, server: Stranger) -> RemoteEngine:
    return weigh(tmp_path, server.url)


def test_other_weights_while_the_engine_is_open_are_seen(tmp_path: Path) -> None:
    """After a server was away: also where it came back before anybody asked."""
    for listed in (True, False):
        server = Injector(weights=1, revision="a" * 12 if listed else None)
        with server, weigh(tmp_path / str(listed), server.url) as engine:
            assert engine.generate(["a"], SHORT)[0].error is None
            server.stop()
            server._weights, server._revision = 2, "b" * 12 if listed else None
            time.sleep(0.3)
            server.start()
            with pytest.raises(EngineError, match=r"when this engine was opened: open it again"):
                engine.generate(["b"], SHORT)
            assert "b" not in server.answered


def test_and_in_the_middle_of_a_call(tmp_path: Path) -> None:
    server = Injector(weights=1, latency=0.02)
    options = {"prompts_per_request": 1, "max_concurrency": 4}
    with server, weigh(tmp_path, server.url, **options) as engine:
        stream = engine.stream([f"q{i}" for i in range(200)], SHORT)
        next(stream)
        server.stop()
        time.sleep(0.5)  # no model loads in less; what is in flight ends meanwhile
        server._weights = 2
        answered = {key for key in server.answered if key.startswith("q")}
        server.start()
        with pytest.raises(EngineError, match="other weights or options"):
            dict(stream)
        assert {key for key in server.answered if key.startswith("q")} == answered


def test_servers_with_other_weights_under_one_name_are_refused() -> None:
    said = pytest.raises(InputError, match="Several servers must have the same model")
    with Injector(weights=1) as one, Injector(weights=2) as two, said:
        remote([one.url, two.url])


def test_a_server_that_was_not_up_joins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.engines.remote.fleet.JOIN", 0.1)
    late = Injector(weights=1, latency=0.05)
    late.start()
    late.stop()  # its port is known
    with Injector(weights=1, latency=0.05) as first:
        options: dict[str, Any] = {"prompts_per_request": 1, "max_concurrency": 2}
        with remote([first.url, late.url], **options) as engine:
            assert late.url not in engine.info.device
            threading.Timer(0.5, late.start).start()
            rows = engine.generate([f"q{i}" for i in range(150)], SHORT)
            assert all(row.error is None for row in rows)
            assert late.url in engine.info.device
        assert sum(late.answered[f"q{i}"] for i in range(150)) > 20
    late.close()


def test_one_with_other_weights_does_not_join(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("workbench.engines.remote.fleet.JOIN", 0.1)
    late = Injector(weights=2)
    late.start()
    late.stop()
    with Injector(weights=1, latency=0.02) as first:
        options: dict[str, Any] = {"prompts_per_request": 1, "max_concurrency": 2}
        with remote([first.url, late.url], **options) as engine:
            late.start()
            rows = engine.generate([f"q{i}" for i in range(150)], SHORT)
            assert all(row.error is None for row in rows)
        assert not any(late.answered[f"q{i}"] for i in range(150))
    assert caplog.text.count("cannot join: it serves the model with other weights") == 1
    late.close()


def test_many_servers_are_all_kept_busy() -> None:
    servers = [Injector(revision="a" * 12, latency=0.3) for _ in range(16)]
    for server in servers:
        server.start()
    try:
        with remote([server.url for server in servers]) as engine:
            engine.generate([f"q{i}" for i in range(200)], SHORT)
        assert all(any(key[0] == "q" for key in server.answered) for server in servers)
    finally:
        for server in servers:
            server.close()


def test_vllm_by_another_name_is_known_by_what_it_does() -> None:
    """As behind Ray Serve and gateways: another owner, and nothing beside /v1."""

    class Behind(Injector):
        def _describe(self, path: str) -> Any:
            page = super()._describe(path)
            if path == "/v1/models":
                page.text = str(page.text).replace('"owned_by": "vllm"', '"owned_by": "acme"')
            return page

    with Behind(revision="a" * 12) as server:
        server._paths -= {"/tokenize"}
        with remote(server.url) as engine:
            scores = engine.label_logprobs(["is it?", "is it not?"], [" Yes", " No"])
            assert not scores.missing.any()
            chat = engine.label_logprobs([CHAT[0]], [" Yes", " No"])
            assert not chat.missing.any()
            (row,) = engine.generate(["a"], Sampling(choices=("answer to a", "b")))
            assert row.text == "answer to a"


@pytest.mark.parametrize("mode", ["no top", "one", "empty"])
def test_what_shows_nothing_is_no_fingerprint(tmp_path: Path, mode: str) -> None:
    """Two models one after the other at one URL, and log-probabilities without alternatives."""

    class Bare(Noisy):
        token = "A"

        def _say(self, asked: Asked) -> Said | None:
            if asked.method == "GET":
                return None
            top: Any = {"no top": None, "one": [{self.token: -0.1}], "empty": [{}]}[mode]
            logprobs = {"tokens": [self.token], "token_logprobs": [-0.1], "top_logprobs": top}
            return Said(reply(choice(self.token, logprobs=logprobs)))

    for token in "AB":
        Bare.token = token
        with Bare(0.0, 0) as server, weigh_at(tmp_path, server) as engine:
            (row,) = engine.generate(["a"], SHORT)
            assert (row.text, row.from_store) == (token, False)


def test_a_name_with_an_at_sign_counts_only_for_the_same_root(tmp_path: Path) -> None:
    """`llama` and `llama@q4` are two models at many servers."""
    cards = {"data": [{"id": "llama", "owned_by": "me"}, {"id": "llama@q4", "owned_by": "me"}]}
    for text in ("one", "two"):

        def say(asked: Asked, text: str = text) -> Said:
            return Said(cards) if asked.method == "GET" else Said(reply(choice(text)))

        with Stranger(say) as server:
            given = {"base_url": server.url, **QUICK}
            with RemoteEngine("llama", Store(tmp_path / "s.sqlite"), "test", given) as engine:
                assert engine.info.revision == "not reported"
                assert engine.generate(["a"], SHORT)[0].text == text


def test_a_server_that_was_silent_is_looked_at_again() -> None:
    """A node dies without a word, and another takes its place."""
    server = Injector(revision="a" * 12, model="m")
    with server, remote(server.url, timeout=1.0, attempts=5, prompts_per_request=1) as engine:
        server.plan = Faults(rate_hang=1.0)

        def replaced() -> None:
            server._revision, server.plan = "b" * 12, Faults()

        threading.Timer(0.5, replaced).start()
        with pytest.raises(EngineError, match="open it again"):
            engine.generate(["a"], SHORT)


def test_a_call_beside_one_that_ends_the_server_ends_too() -> None:
    def say(asked: Asked) -> Said | None:
        if "bad" in str(asked.body.get("prompt")):
            return Said({"error": {"message": "pay"}}, 402)
        time.sleep(0.05)
        return None

    options: dict[str, Any] = {
        "prompts_per_request": 1, "max_concurrency": 2, "total_timeout": 10.0
    }  # fmt: skip
    with Stranger(on_post(say)) as server, remote(server.url, **options) as engine:
        prompts = [f"q{i}" for i in range(40)]
        good = threading.Thread(target=lambda: engine.generate(prompts, SHORT, errors="return"))
        good.start()
        with pytest.raises(EngineError, match="402"):
            engine.generate(["bad"], SHORT)
        good.join(20)
        assert not good.is_alive()


def test_one_hung_server_does_not_stop_the_others() -> None:
    one, two = (Injector(revision="a" * 12, model="m") for _ in range(2))
    with one, two:
        with remote([one.url, two.url], timeout=2.0, prompts_per_request=1) as engine:

            async def hangs(*_: object) -> Any:
                await asyncio.sleep(60)

            two.stop()
            two._serve = hangs  # type: ignore[method-assign, assignment]
            two.start()
            time.sleep(0.3)  # so that both are looked at
            start = time.monotonic()
            rows = engine.generate([f"q{i}" for i in range(40)], SHORT, errors="return")
            assert all(row.error is None for row in rows)
            assert time.monotonic() - start < 15


def test_a_busy_server_is_no_other_model() -> None:
    with Injector(weights=1) as one:
        with Injector(Faults(rate_429=1.0, retry_after=9), weights=1) as two:
            with remote([one.url, two.url]) as engine:
                assert two.url not in engine.info.device
                assert engine.generate(["a"], SHORT)[0].error is None


def test_one_fault_when_asked_does_not_make_labels_inexact() -> None:
    with Injector(revision="a" * 12) as server, remote(server.url) as engine:
        engine.generate(["a"], SHORT)
        server.plan = Faults(rate_429=1.0)
        threading.Timer(0.2, lambda: setattr(server, "plan", Faults())).start()
        assert not engine.label_logprobs(["is it?"], [" Yes", " No"]).missing.any()


def test_labels_that_are_numbers_are_no_token_ids() -> None:
    """vLLM without log-probabilities of named tokens: the likeliest ones are texts."""
    tops = {"7": math.log(0.9), "token_id:7": math.log(0.01)}
    with Injector(revision="a" * 12, tops=lambda _: tops) as server, remote(server.url) as engine:
        for endpoint in engine._endpoints:
            endpoint.exact = False
        engine.label_logprobs(["2+5="], ["7", "8"])
        assert "return_tokens_as_token_ids" not in server.bodies[-1]


def test_a_date_of_no_calendar_is_no_wait() -> None:
    odd = {"Retry-After": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"}

    def say(asked: Asked) -> Said | None:
        return Said(status=503, headers=dict(odd)) if asked.method == "GET" else None

    with Stranger(say) as server, pytest.raises(EngineUnavailableError):
        remote(server.url)


@pytest.mark.parametrize("where", ["model", "finish_reason", "path", "id"])
def test_a_key_is_nowhere_in_notes_and_messages(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    key = "sk-" + "secret" * 12
    monkeypatch.setenv("WORKBENCH_API_KEY", key)

    def say(asked: Asked) -> Said | None:
        if asked.method == "GET":
            if where == "path":
                return Said(f"Cannot GET {asked.path}".encode(), 404)
            two = [{"id": f"x {key}"}, {"id": f"y {key}"}]
            return Said({"data": two}) if where == "id" else None
        more: dict[str, Any] = {"model": f"{'x' * 60}{key}"} if where == "model" else {}
        ended: dict[str, Any] = (
            {"finish_reason": f"{'x' * 30}{key}"} if where == "finish_reason" else {}
        )
        return Said(reply(choice("42", **ended), **more))

    said = ""
    with Stranger(say) as server:
        try:
            given = {"base_url": f"{server.url}?api-key={key}x", **QUICK}
            with RemoteEngine(None, None, "test", given) as engine:
                engine.generate(["a"], SHORT)
                said = str(engine.info.notes)
                assert said != "()"
        except (EngineError, InputError) as error:
            said = str(error)
    assert "secret" not in said + caplog.text


def test_redaction_takes_no_time() -> None:
    start = time.monotonic()
    redactor(["sk-a/b+c=d&e"])("\\" * 10**6)
    assert time.monotonic() - start < 1


def test_faults_on_the_way_are_no_restart() -> None:
    """A broken connection among many that work is not looked into."""
    with Injector(Faults(rate_reset=0.05), latency=0.01, weights=1, seed=4) as server:
        with remote(server.url, prompts_per_request=1, attempts=12) as engine:
            rows = engine.generate([f"q{i}" for i in range(300)], SHORT)
    assert all(row.error is None for row in rows)
    looks = sum(n for key, n in server.answered.items() if key.startswith("The capital"))
    assert looks < 20


def test_a_path_that_always_breaks_costs_no_fingerprint() -> None:
    """Some servers answer 500 to what they do not have."""

    class Broken(Noisy):
        def _say(self, asked: Asked) -> Said | None:
            return Said(status=500) if "/chat/" in asked.path else super()._say(asked)

    with Broken(0.0, 0) as server, remote(server.url) as engine:
        assert engine.info.revision.startswith("fingerprint ")


def test_check_server_lists_what_answers_without_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM itself guards /v1 only, as this server does."""
    monkeypatch.setenv("WORKBENCH_API_KEY", "sk-right")
    with Injector(key="sk-right", revision="a" * 12) as server:
        (found,) = [one for one in check(server.url) if one.what == "key"]
    assert not found.works
    assert {"/tokenize", "/metrics", "/version"} <= {*found.seen.split(": ")[1].split(", ")}
    assert "/v1/models" not in found.seen


def test_hub_models_without_a_commit_are_not_stored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Injector(revision="a" * 12) as server:
        engine = RemoteEngine(
            None, Store(tmp_path / "s.sqlite"), "test", {"base_url": server.url, **QUICK}
        )
        with engine:  # what the engines in process do where no commit is known
            engine._store_nothing("no commit of org/name is known")
            engine.generate(["a"], SHORT)
            assert not engine.has_store
            assert "the store is off" in engine.info.notes[0]
    assert len(Store(tmp_path / "s.sqlite")) == 0


def test_scores_refuse_and_note_what_answers_do() -> None:
    with Stranger() as server:
        with remote(server.url, chat_template="{{ messages }}") as engine:
            for ask in (engine.generate, lambda chats: engine.label_logprobs(chats, ["a", "b"])):
                with pytest.raises(InputError, match="only a vLLM server accepts one"):
                    ask(CHAT)
        begun: list[Any] = [[*CHAT[0], {"role": "assistant", "content": "Well"}]]
        with remote(server.url) as engine:
            engine.label_logprobs(begun, ["a", "b"], errors="return")
            assert any("is sent unchanged" in note for note in engine.info.notes)
