"""The remote engine against a server that misbehaves on demand; real answers: test_server.py."""

from __future__ import annotations

import asyncio
import math
import signal
import ssl
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme

from benchmarks.injector import Faults, Injector
from workbench import Sampling, open_engine, store
from workbench.engines.remote import Estimate, RemoteEngine, http, label_scores, wire
from workbench.engines.remote.endpoint import Endpoint
from workbench.engines.remote.label_scores import from_top
from workbench.engines.remote.retry import ConcurrencyLimit, RateLimit
from workbench.engines.remote.settings import RemoteOptions
from workbench.errors import EngineError, EngineUnavailableError, InputError
from workbench.store import Store
from workbench.types import Message

PROMPTS = [f"question {i}" for i in range(200)]
SHORT = Sampling(max_tokens=8)
HASTY: dict[str, Any] = {"attempts": 12, "timeout": 1.5, "outage_timeout": 30.0}


def fake(*faults: Faults, **options: Any) -> Injector:
    """A server that lists a revision of its weights, as ours do; plain vLLM and others do not."""
    revision = "0123456789ab" if options.get("vllm", True) else None
    return Injector(*faults, **{"revision": revision, **options})


def remote(url: str, store: Store | None = None, **options: Any) -> RemoteEngine:
    return RemoteEngine(None, store, "test", {"base_url": url, **options})


def spread(*urls: str) -> RemoteEngine:
    return RemoteEngine(None, None, "test", {"base_url": list(urls)})


def texts(engine: RemoteEngine, prompts: list[str] = PROMPTS, **sampling: Any) -> list[str]:
    return [row.text for row in engine.generate(prompts, Sampling(max_tokens=8, **sampling))]


@pytest.mark.parametrize("transport", ["aiohttp", "threads"])
def test_every_request_is_answered_once_and_in_order(transport: str) -> None:
    rates = dict.fromkeys(
        ("rate_429", "rate_500", "rate_reset", "rate_half", "rate_malformed", "rate_hang"), 0.05
    )
    with fake(Faults(**rates), seed=1) as server:  # type: ignore[arg-type]
        with remote(server.url, prompts_per_request=1, transport=transport, **HASTY) as engine:
            assert texts(engine, PROMPTS[:120]) == [f"answer to {p}" for p in PROMPTS[:120]]
            assert engine.usage.retries > 0
            assert engine.usage.rate_limit_hits > 0
        assert dict(server.answered) == dict.fromkeys(PROMPTS[:120], 1)


def test_prompts_travel_together() -> None:
    with fake() as server, remote(server.url) as engine:
        assert texts(engine) == [f"answer to {p}" for p in PROMPTS]
        assert server.requests == 8
        assert engine.usage.prompt_tokens == sum(map(len, PROMPTS))  # the injector's are bytes


def test_a_poisonous_prompt_fails_alone() -> None:
    with fake(Faults(poison="question 77")) as server, remote(server.url) as engine:
        rows = engine.generate(PROMPTS, SHORT, errors="return")
        assert [i for i, row in enumerate(rows) if row.error] == [77]
        assert rows[77].finish_reason == "error"
        assert "HTTP 400" in str(rows[77].error)
        assert max(server.answered.values()) == 1
        with pytest.raises(EngineError, match="1 of 200 prompts failed"):
            engine.generate(PROMPTS, SHORT)


def test_a_prompt_that_breaks_the_server_fails_alone_too() -> None:
    faults = Faults(poison="question 77", poison_status=500)
    with fake(faults) as server, remote(server.url, attempts=2) as engine:
        rows = engine.generate(PROMPTS, SHORT, errors="return")
        assert [i for i, row in enumerate(rows) if row.error] == [77]


def test_single_requests_where_a_server_takes_no_more() -> None:
    chats: list[list[Message]] = [[{"role": "user", "content": p}] for p in PROMPTS[:20]]
    with fake(Faults(multi=False), batch=False) as server, remote(server.url) as engine:
        assert texts(engine, PROMPTS[:20]) == [f"answer to {p}" for p in PROMPTS[:20]]
        rows = engine.generate(chats, SHORT)  # the batch endpoint gives 404
        assert [row.text for row in rows] == [f"answer to {p}" for p in PROMPTS[:20]]
        before = server.requests
        texts(engine, PROMPTS[20:30])
        assert server.requests == before + 10  # what the server takes is remembered


def test_samples_of_one_chat_share_a_request() -> None:
    chat: list[Message] = [{"role": "user", "content": "hello"}]
    with fake(vllm=False, batch=False) as server, remote(server.url) as engine:
        before = server.requests
        (row,) = engine.generate([chat], Sampling(max_tokens=8, n=4, temperature=1.0))
        assert len({sample.text for sample in row.samples}) == 4
        assert server.requests == before + 1


@pytest.mark.parametrize("fault", ["rate_fewer", "rate_shuffled", "rate_duplicate"])
def test_choices_missing_or_out_of_order(fault: str) -> None:
    with fake(Faults(**{fault: 0.3}), seed=3) as server, remote(server.url) as engine:  # type: ignore[arg-type]
        assert texts(engine) == [f"answer to {p}" for p in PROMPTS]


@pytest.mark.parametrize("fault", ["rate_nan", "rate_no_logprobs"])
def test_logprobs_that_are_none(fault: str) -> None:
    faults = Faults(**{fault: 1.0})  # type: ignore[arg-type]
    with fake(faults) as server, remote(server.url, prompts_per_request=1) as engine:
        rows = engine.generate(PROMPTS[:4], Sampling(max_tokens=4, logprobs=2), errors="return")
        assert all("log-prob" in str(row.error) for row in rows)
        scores = engine.label_logprobs(PROMPTS[:4], ["a", "b"], errors="return")
        assert all("log-prob" in str(error) for error in scores.errors)
        assert not np.isnan(scores.logprobs).any()
        assert scores.missing.all()


def test_an_empty_text_is_an_answer_and_so_is_a_text_with_an_unknown_ending() -> None:
    with (
        fake(Faults(rate_empty=1.0)) as server,
        remote(server.url, prompts_per_request=1) as engine,
    ):
        assert texts(engine, PROMPTS[:2]) == ["", ""]
    with fake(Faults(rate_finish=1.0)) as server, remote(server.url) as engine:
        assert texts(engine, PROMPTS[:2]) == [f"answer to {p}" for p in PROMPTS[:2]]
        assert "'tired'" in str(engine.info.notes)


def test_a_server_that_is_none() -> None:
    for url, said in (
        ("", "must be a server's URL"),
        ("nope", "must begin with http"),
        ("ftp://127.0.0.1", "must begin with http"),
        ("http://127.0.0.1:port", "no valid port"),
        ("http://user:hush@127.0.0.1:8000", "WORKBENCH_API_KEY"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            remote(url)
        assert "hush" not in str(caught.value)
    with pytest.raises(EngineUnavailableError, match=r"cannot be reached.*workbench serve"):
        remote("http://127.0.0.1:9")


class Page(BaseHTTPRequestHandler):
    """A web server, but not of models."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html><body>Welcome</body></html>")

    def log_message(self, *_: object) -> None:
        pass


def test_a_web_page_is_no_server_of_models() -> None:
    server = HTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(EngineUnavailableError, match="a web page"):
            remote(f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()


def test_an_html_error_page_is_asked_again() -> None:
    with fake(Faults(rate_502=0.3), seed=2) as server, remote(server.url) as engine:
        assert texts(engine) == [f"answer to {p}" for p in PROMPTS]


def test_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORKBENCH_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another")  # never sent elsewhere
    with fake(key="sk-right") as server:
        with pytest.raises(EngineUnavailableError, match="asks for a key: put it in WORKBENCH"):
            remote(server.url)
        monkeypatch.setenv("WORKBENCH_API_KEY", "sk-wrong")
        with pytest.raises(EngineUnavailableError, match="refuses the key") as caught:
            remote(server.url)
        assert "sk-wrong" not in str(caught.value)
        monkeypatch.delenv("WORKBENCH_API_KEY")
        (tmp_path / ".env").write_text("WORKBENCH_API_KEY=sk-right\n")
        with remote(server.url) as engine:
            assert texts(engine, ["hello"]) == ["answer to hello"]
            assert "sk-right" not in repr((engine, engine.info, vars(engine)))
    with pytest.raises(InputError, match="WORKBENCH_API_KEY"):
        remote("http://127.0.0.1:9", api_key="sk-right")


def test_an_unknown_model_lists_the_known() -> None:
    with fake() as server, pytest.raises(InputError, match="serves fake"):
        RemoteEngine("fak", None, "test", {"base_url": server.url})


@pytest.mark.parametrize("transport", ["aiohttp", "threads"])
def test_a_certificate_of_ones_own(
    transport: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with fake(ssl_context=context) as server:
        with pytest.raises(EngineUnavailableError, match="SSL_CERT_FILE"):
            remote(server.url, transport=transport)
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        with remote(server.url, transport=transport) as engine:
            assert texts(engine, ["hello"]) == ["answer to hello"]


def test_a_fatal_error_is_shown_by_ipython() -> None:
    """Which shows nothing of an error with a group among its contexts."""
    faults = Faults(poison="question 5", poison_status=401)
    with fake(faults) as server, remote(server.url) as engine:
        with pytest.raises(EngineError, match="HTTP 401") as caught:
            engine.generate(PROMPTS, SHORT)
    chain, link = [], caught.value.__cause__ or caught.value.__context__
    while link is not None:
        chain.append(link)
        link = link.__cause__ or link.__context__
    assert not any(isinstance(one, BaseExceptionGroup) for one in [caught.value, *chain])


def test_to_ask_whether_a_server_is_promising_changes_nothing() -> None:
    with fake() as server, remote(server.url) as engine:
        (endpoint,) = engine._endpoints
        assert endpoint.promising
        endpoint.failed()
        assert not endpoint.promising
        endpoint._tried_at -= 10
        assert endpoint.promising
        assert endpoint.promising
        endpoint.enter(1)  # the request that finds out
        assert not endpoint.promising


def test_options() -> None:
    for options, said in (
        ({"max_concurency": 8}, "did you mean 'max_concurrency'"),
        ({"max_concurrency": 0}, "max_concurrency=0"),
        ({"prompts_per_request": "many"}, "prompts_per_request='many'"),
        ({"timeout": -1}, "timeout=-1"),
        ({"transport": "pigeon"}, "transport='pigeon'"),
    ):
        with pytest.raises(InputError, match=said):
            remote("http://127.0.0.1:9", **options)


def test_ctrl_c_keeps_what_has_arrived(tmp_path: Path) -> None:
    with fake(latency=0.02) as server:
        store = Store(tmp_path / "store.sqlite")
        with remote(server.url, store, prompts_per_request=1, max_concurrency=4) as engine:
            stop = threading.Thread(target=_interrupt_after, args=(server, 20))
            stop.start()
            with pytest.raises(KeyboardInterrupt):
                engine.generate(PROMPTS, SHORT)
            stop.join()
            kept = len(store)
            assert 16 <= kept < len(PROMPTS)  # four were on their way
            before = engine.usage
            assert texts(engine) == [f"answer to {p}" for p in PROMPTS]  # usable, and continues
            assert engine.usage.since(before).from_store == kept
            again = sum(server.answered.values()) - len(PROMPTS)
            assert again <= 4  # what was on its way


def _interrupt_after(server: Injector, answers: int) -> None:
    while sum(server.answered.values()) < answers:
        time.sleep(0.005)
    signal.raise_signal(signal.SIGINT)


def test_in_a_running_loop() -> None:
    async def cell() -> list[str]:
        with remote(server.url) as engine:
            return texts(engine, PROMPTS[:3])

    with fake() as server:
        assert asyncio.run(cell()) == [f"answer to {p}" for p in PROMPTS[:3]]


def test_a_server_that_went_away_is_waited_for() -> None:
    with fake(latency=0.02) as server:
        with remote(server.url, prompts_per_request=1, max_concurrency=4) as engine:
            stream = engine.stream(PROMPTS, SHORT)
            got = dict([next(stream), next(stream)])
            server.stop()
            threading.Timer(0.5, server.start).start()
            got |= dict(stream)
        assert [got[i].text for i in range(200)] == [f"answer to {p}" for p in PROMPTS]
        assert max(server.answered.values()) == 1


def test_a_server_that_is_gone_for_good_ends_the_call(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite")
    options = {"prompts_per_request": 1, "outage_timeout": 0.5}
    with fake(latency=0.02) as server, remote(server.url, store, **options) as engine:
        stream = engine.stream(PROMPTS, SHORT)
        next(stream)
        server.stop()
        with pytest.raises(EngineError, match=r"nothing but failures for 0\.5 s"):
            dict(stream)
        assert len(store) > 0


def test_several_servers_share_the_work_and_one_may_die() -> None:
    with fake(latency=0.01) as one, fake(latency=0.01, seed=1) as two:
        urls = [one.url, two.url]
        options = {"base_url": urls, "prompts_per_request": 1, "max_concurrency": 4}
        with RemoteEngine(None, None, "test", options) as engine:
            stream = engine.stream(PROMPTS, SHORT)
            got = dict(next(stream) for _ in range(50))
            two.close()
            got |= dict(stream)
        assert [got[i].text for i in range(200)] == [f"answer to {p}" for p in PROMPTS]
        assert sum(two.answered.values()) > 10
        assert sum(one.answered.values()) > 100


def test_servers_with_different_models_are_refused() -> None:
    said = pytest.raises(InputError, match="must have the same model")
    with fake() as one, fake(revision="ba9876543210") as two, said:
        spread(one.url, two.url)


def test_a_limit_that_the_server_does_not_report_is_found() -> None:
    with fake(capacity=6, latency=0.05, vllm=False) as server:
        with remote(server.url, prompts_per_request=1) as engine:
            assert texts(engine) == [f"answer to {p}" for p in PROMPTS]
        assert server.faults["capacity"] <= 80
        assert server.peak == 6


def test_a_wrong_key_in_mid_run_ends_the_call() -> None:
    said = pytest.raises(EngineError, match="HTTP 401")
    faults = Faults(poison="question 77", poison_status=401)
    with fake(faults) as server, remote(server.url) as engine, said:
        engine.generate(PROMPTS, SHORT)


def test_structured_output_that_the_server_does_not_have() -> None:
    said = pytest.raises(InputError, match="only a vLLM server")
    with fake(vllm=False) as server, remote(server.url) as engine, said:
        engine.generate(["hello"], Sampling(choices=("a", "b")))


def test_choices_that_the_server_does_not_keep_to() -> None:
    with fake() as server, remote(server.url) as engine:
        (row,) = engine.generate(["hello"], Sampling(choices=("a", "b")), errors="return")
        assert "none of the choices" in str(row.error)


def test_an_estimate_before_the_run(caplog: pytest.LogCaptureFixture) -> None:
    with fake() as server, remote(server.url, requests_per_minute=6000) as engine:
        estimate = engine.estimate(["12345678"] * 60, Sampling(max_tokens=10, temperature=1, n=2))
        assert estimate == Estimate(120, 360, 1200, 0.02)
        texts(engine, PROMPTS[:2])
        assert "at most 2 requests, about 6 prompt tokens" in caplog.text


def test_a_packet_that_moves_to_a_server_unlike_the_first() -> None:
    """The second accepts one prompt per request: nothing may be taken for an answer to another."""
    flaky, single = fake(Faults(rate_500=0.5), seed=1), fake(Faults(multi=False))
    with flaky as one, single as two, spread(one.url, two.url) as engine:
        assert texts(engine) == [f"answer to {p}" for p in PROMPTS]


def test_the_engine_is_usable_after_a_call_that_ended_early() -> None:
    faults = Faults(poison="question 5", poison_status=401)
    with fake(faults) as server, remote(server.url, max_concurrency=2) as engine:
        for _ in range(3):
            with pytest.raises(EngineError, match="HTTP 401"):
                engine.generate(PROMPTS, SHORT)
        stream = engine.stream(PROMPTS[10:40], SHORT)
        next(stream)
        stream.close()
        assert texts(engine, PROMPTS[10:40]) == [f"answer to {p}" for p in PROMPTS[10:40]]
        assert engine._endpoints[0].limit.busy == engine._endpoints[0].prompts == 0


def test_what_arrived_is_kept_when_the_reader_leaves(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite")
    with fake() as server, remote(server.url, store, prompts_per_request=1) as engine:
        stream = engine.stream(PROMPTS, SHORT)
        next(stream)
        while sum(server.answered.values()) < len(PROMPTS):  # the reader is busy elsewhere
            time.sleep(0.01)
        time.sleep(0.3)
        stream.close()
        assert len(store) == len(PROMPTS)


@pytest.mark.parametrize("status", [502, 504])
def test_a_proxy_that_gives_up_on_one_prompt(status: int) -> None:
    faults = Faults(poison="question 7", poison_status=status)
    options: dict[str, Any] = {"attempts": 3, "max_concurrency": 4, "prompts_per_request": 8}
    with fake(faults) as server, remote(server.url, **options) as engine:
        rows = engine.generate(PROMPTS[:60], SHORT, errors="return")
        assert [i for i, row in enumerate(rows) if row.error] == [7]


def test_a_server_that_is_back_is_used_again() -> None:
    with fake() as server, remote(server.url, outage_timeout=0.3) as engine:
        server.stop()
        with pytest.raises(EngineError, match="nothing but failures"):
            engine.generate(PROMPTS[:4], SHORT)
        server.start()
        assert texts(engine, PROMPTS[:4]) == [f"answer to {p}" for p in PROMPTS[:4]]


def test_a_server_that_refuses_the_key_leaves_the_others() -> None:
    faults = Faults(poison="question", poison_status=401)
    with fake(faults) as one, fake() as two, spread(one.url, two.url) as engine:
        assert texts(engine) == [f"answer to {p}" for p in PROMPTS]


def test_a_wait_that_is_longer_than_the_budget() -> None:
    faults = Faults(rate_429=1.0, retry_after=7200)
    with fake(faults) as server, remote(server.url, prompts_per_request=1) as engine:
        with pytest.raises(EngineError, match="asks for a wait of 7200 s"):
            engine.generate(PROMPTS, SHORT)
        assert server.requests < 150


def test_all_attempts_end_together() -> None:
    options: dict[str, Any] = {"prompts_per_request": 8, "total_timeout": 0.6, "timeout": 30.0}
    with fake(Faults(rate_hang=1.0)) as server, remote(server.url, **options) as engine:
        engine._endpoints[0].multi = True  # finding out would hang as well
        started = time.monotonic()
        rows = engine.generate(PROMPTS[:16], SHORT, errors="return")
        assert all("no answer within" in str(row.error) for row in rows)
        assert time.monotonic() - started < 6


def test_odd_text_fails_alone() -> None:
    with fake() as server, remote(server.url) as engine:
        rows = engine.generate([*PROMPTS[:9], "\ud800"], SHORT, errors="return")
        assert [row.error is None for row in rows] == [True] * 9 + [False]


def test_usage_can_be_read_after_closing() -> None:
    with fake() as server:
        with remote(server.url) as engine:
            texts(engine, PROMPTS[:3])
        assert engine.usage.requests == 3
        assert engine.usage.cached_tokens is not None
    assert engine.usage.requests == 3


def test_nothing_is_left_for_the_server_to_fill_in() -> None:
    """vLLM takes what a request leaves out from the model's generation_config.json."""
    chat: list[Message] = [{"role": "system", "content": "Be brief."}]
    kwargs = {"enable_thinking": False}
    with fake() as server, remote(server.url, chat_template_kwargs=kwargs) as engine:
        engine.generate([chat], Sampling(max_tokens=4, stop=("\n",), temperature=0.5, seed=1))
        body = server.bodies[-1]
        assert (body["top_p"], body["top_k"], body["min_p"]) == (1.0, 0, 0.0)
        assert (body["repetition_penalty"], body["temperature"]) == (1.0, 0.5)
        assert (body["stop"], body["max_tokens"]) == (["\n"], 4)
        assert isinstance(body["seed"], int)
        assert (body["messages"], body["chat_template_kwargs"]) == (chat, kwargs)


def test_reasoning_is_kept_apart_from_the_answer() -> None:
    message = {"content": "42", "reasoning": "6 times 7"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    row = wire.read(choice, SHORT, wire.TokenCounts(5, 3))
    assert (row.text, row.reasoning, row.completion_tokens) == ("42", "6 times 7", 3)
    assert replace(row, from_store=True) == store.load(store.dump(row))
    assert row.reasoning == "6 times 7"
    cut = {**choice, "message": {"content": None, "reasoning": "6 ti"}, "finish_reason": "length"}
    row = wire.read(cut, SHORT, wire.TokenCounts())
    assert (row.text, row.reasoning, row.finish_reason) == ("", "6 ti", "length")
    refused = {**choice, "message": {"content": None, "refusal": "I will not"}}
    assert "I will not" in str(wire.read(refused, SHORT, wire.TokenCounts()).error)


def test_a_key_within_an_answer_is_text_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_API_KEY", "sk-right")
    with fake(key="sk-right") as server, remote(server.url) as engine:
        assert texts(engine, ["is it sk-right?"]) == ["answer to is it sk-right?"]


def test_names_with_an_at_sign() -> None:
    with Injector(model="@cf/meta/llama") as server, remote(server.url) as engine:
        assert engine.info.model == "@cf/meta/llama"
        assert engine.info.revision.startswith("fingerprint ")


def test_rate_limits_are_kept() -> None:
    async def spend() -> float:
        limit = RateLimit(1200, 60_000)
        started = time.monotonic()
        for _ in range(240):  # 200 at once, then 20 a second
            await limit.wait(1)
        return time.monotonic() - started

    assert 1.9 < asyncio.run(spend()) < 4


def test_the_limit_grows_only_when_it_is_used_and_is_cut_once() -> None:
    limit = ConcurrencyLimit(most=100, start=10)
    for _ in range(40):  # idle rounds
        limit.enter()
        limit.succeeded(1.0)
        limit.leave()
    assert limit.limit == 10
    for _ in range(10):
        limit.enter()
    for _ in range(20):
        limit.succeeded(1.0)
    assert limit.limit == 20
    for _ in range(5):
        limit.overloaded()
    assert limit.limit == 16


def test_labels_from_the_likeliest_tokens() -> None:
    top = [(" Yes", math.log(0.5)), ("Yes", math.log(0.1)), (" T", math.log(0.2))]
    (yes, no, true), upper = from_top(top, [" Yes", " No", " True"])
    assert yes == pytest.approx(math.log(0.6))
    assert (no, true) == (-math.inf, -math.inf)
    assert np.exp(upper) == pytest.approx([0.6, 0.1, 0.2], abs=1e-5)
    # A probability that is too small for a float has a logarithm all the same.
    assert from_top([(" Yes", 0.0), (" No", -1e5)], [" No", " T"]) == (
        (-1e5, -math.inf),
        (-1e5, -1e5),
    )


def test_labels_where_they_cannot_be_exact() -> None:
    with fake(vllm=False) as server, remote(server.url) as engine:
        scores = engine.label_logprobs(["hello"], ["answer to hello", "else"])
        assert scores.missing.tolist() == [[False, True]]
        assert scores.logprobs[0, 1] == -math.inf
        assert -math.inf < scores.upper[0, 1] < 0
        scores = engine.label_logprobs(["hello"], ["or", "else"], errors="return")
        assert "none of the labels" in str(scores.errors[0])


def test_without_a_server_it_says_where_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORKBENCH_BASE_URL", raising=False)
    with pytest.raises(InputError, match="WORKBENCH_BASE_URL"):
        open_engine(engine="remote")


def test_servers_opened_together_read_the_certificates_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Reading them takes 0.07 s: two minutes for a thousand servers."""
    reads = []
    load = ssl.SSLContext.load_verify_locations

    def counted(*args: Any, **named: Any) -> None:
        reads.append(args)
        load(*args, **named)

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", counted)
    http._read_trusted.cache_clear()
    made = [Endpoint(f"http://127.0.0.1:{9000 + i}/v1", RemoteOptions()) for i in range(5)]
    threads = [Endpoint("http://127.0.0.1:9/v1", RemoteOptions(transport="threads"))]
    for one in made + threads:
        one.close()
    assert len(reads) <= 2  # a minute may have passed between them


def test_a_block_of_labels_fills_all_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_scores, "BLOCK", 64)
    with fake() as one, fake() as two, spread(one.url, two.url) as engine:
        calls: list[int] = []
        dispatch = engine._dispatch

        def counted(plan: Any, jobs: Any) -> Any:
            calls.append(len(jobs))
            return dispatch(plan, jobs)

        monkeypatch.setattr(engine, "_dispatch", counted)
        prompts = [f"claim {i}" for i in range(1500)]
        assert not engine.label_logprobs(prompts, ["a", "b"]).missing.any()
    assert calls == [2, 1024, 476]  # the tokens of two labels; 64 prompts × 8 requests × 2 servers
