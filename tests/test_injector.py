from __future__ import annotations

import contextlib
import http.client
import json
import math
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from email.message import Message
from typing import Any

import pytest

from benchmarks.injector import Faults, Injector
from workbench.errors import InputError

Json = dict[str, Any]


def post(server: Injector, body: Json, path: str = "/completions", timeout: float = 2.0) -> Json:
    request = urllib.request.Request(server.url + path, json.dumps(body).encode())
    request.add_header("Authorization", "Bearer sk-sent")
    with urllib.request.urlopen(request, timeout=timeout) as reply:
        return dict(json.load(reply))


def refusal(server: Injector, body: Json) -> tuple[int, Message, str]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(server, body)
    with caught.value as error:
        return error.code, error.headers, error.read().decode()


def get(server: Injector, path: str) -> str:
    with urllib.request.urlopen(server.url.removesuffix("/v1") + path, timeout=2) as reply:
        return str(reply.read().decode())


def test_answers_follow_from_the_prompts() -> None:
    with Injector() as server:
        wanted = {"logprobs": 2, "return_token_ids": True, "max_tokens": 3}
        one = post(server, {"prompt": "1+1 is a sum"} | wanted)
        (choice,) = one["choices"]
        assert (choice["text"], choice["finish_reason"]) == ("answer to 1+1 is a sum", "length")
        assert choice["prompt_token_ids"] == list(b"1+1 is a sum")
        assert len(choice["token_ids"]) == one["usage"]["completion_tokens"] == 3
        assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
        assert [len(top) for top in choice["logprobs"]["top_logprobs"]] == [2, 2, 2]
        for prompt in ([7, 8], [[7, 8], [9]], ["a", "b"]):
            many = post(server, {"prompt": prompt, "n": 2})["choices"]
            assert [one["index"] for one in many] == list(range(len(many)))
        assert [one["text"][10:] for one in many] == ["a", "a #1", "b", "b #1"]
        talk = [{"role": "user", "content": "hello"}]
        reply = post(server, {"messages": talk, "logprobs": True}, "/chat/completions")
        assert reply["choices"][0]["message"]["content"] == "answer to hello"
        talks = post(server, {"messages": [talk, talk]}, "/chat/completions/batch")
        assert [one["index"] for one in talks["choices"]] == [0, 1]
        assert server.answered == {
            "1+1 is a sum": 1, "7 8": 2, "9": 1, "a": 1, "b": 1, "hello": 3,
        }  # fmt: skip
        assert json.loads(get(server, "/v1/models"))["data"][0]["max_model_len"] == 2048
        assert 'hits_total{engine="0",model_name="fake"} 0.0' in get(server, "/metrics")
        assert refusal(server, {"prompt": []})[0] == 400


def test_plays_a_server_that_is_not_vllm() -> None:
    with Injector(vllm=False, key="sk-right") as server:
        status, _, text = refusal(server, {"prompt": "a"})
        assert (status, "provided: sk-sent." in text) == (401, True)
    with Injector(vllm=False) as server:
        assert "max_model_len" not in get(server, "/v1/models")
        for path in ("/version", "/metrics", "/v1/chat/completions/batch"):
            with pytest.raises(urllib.error.HTTPError, match="404") as caught:
                get(server, path)
            caught.value.close()


def test_refusals() -> None:
    with Injector(Faults(rate_429=1.0)) as server:
        assert refusal(server, {"prompt": "a"})[1]["Retry-After"] == "0.05"
        server.plan = Faults(rate_429=1.0, retry_after=None)
        assert "Retry-After" not in refusal(server, {"prompt": "a"})[1]
        server.plan = Faults(rate_500=1.0)
        assert refusal(server, {"prompt": "a"})[0] == 500
        server.plan = Faults(rate_502=1.0)
        assert refusal(server, {"prompt": "a"})[1]["Content-Type"].startswith("text/html")
        server.plan = Faults(poison="bad", poison_status=500, multi=False)
        assert refusal(server, {"prompt": ["too bad"]})[0] == 500
        assert refusal(server, {"prompt": ["a", "b"]})[0] == 400
        assert post(server, {"prompt": ["a"]})["choices"]
        server.plan = replace(server.plan, dead_after=server.requests)
        assert refusal(server, {"prompt": "a"})[0] == 500
        assert server.faults == {"429": 2, "500": 1, "502": 1, "poison": 1, "multi": 1, "dead": 1}
        assert server.answered == {"a": 1}
    with pytest.raises(InputError, match=r"rate_429=2\.0"):
        Faults(rate_429=2.0)


def test_broken_answers() -> None:
    with Injector(Faults(rate_reset=1.0)) as server:
        with pytest.raises(ConnectionResetError):
            post(server, {"prompt": "a"})
        server.plan = Faults(rate_half=1.0)
        with pytest.raises(http.client.IncompleteRead):
            post(server, {"prompt": "a"})
        server.plan = Faults(rate_malformed=1.0)
        for _ in range(4):
            with pytest.raises(ValueError, match=r"decode|double quotes|Expecting|Unterminated"):
                post(server, {"prompt": "a"})
        server.plan = Faults(rate_hang=1.0)
        with pytest.raises(TimeoutError):
            post(server, {"prompt": "a"}, timeout=0.1)
        server.plan = Faults(dead_after=0, dead_closes=True)
        with pytest.raises(ConnectionResetError):
            post(server, {"prompt": "a"})
        assert not server.answered
        assert [outcome for _, outcome in server.log] == [
            "reset", "half", *["malformed"] * 4, "hang", "dead",
        ]  # fmt: skip


def test_content_faults() -> None:
    body = {"prompt": ["a", "b", "c"], "logprobs": 1}
    with Injector() as server:

        def spoilt(**rates: float) -> list[Json]:
            server.plan = Faults(**rates)  # type: ignore[arg-type]
            server.answered.clear()
            return list(post(server, body)["choices"])

        assert len(spoilt(rate_fewer=1.0)) == 2
        assert server.answered.total() == 2
        mixed = spoilt(rate_shuffled=1.0)
        assert [one["index"] for one in mixed] != [0, 1, 2]
        assert all(one["text"] == f"answer to {'abc'[one['index']]}" for one in mixed)
        assert server.answered.total() == 3
        assert len({one["index"] for one in spoilt(rate_duplicate=1.0)}) == 2
        assert server.answered.total() == 1
        nan = spoilt(rate_nan=1.0)
        assert sum(math.isnan(one["logprobs"]["token_logprobs"][-1]) for one in nan) == 1
        assert sum(one["logprobs"] is None for one in spoilt(rate_no_logprobs=1.0)) == 1
        assert sum(one["text"] == "" for one in spoilt(rate_empty=1.0)) == 1
        assert sum(one["text"] is None for one in spoilt(rate_null=1.0)) == 1
        assert sum(one["finish_reason"] == "tired" for one in spoilt(rate_finish=1.0)) == 1
        assert server.faults.total() == len(server.log) == 8


def test_capacity_and_going_down() -> None:
    server = Injector(latency=0.3, capacity=2)
    with server, ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(post, server, {"prompt": f"{i}"}) for i in range(4)]
        failed = [one.exception() for one in asked]
        assert sum(one is None for one in failed) == server.peak == 2
        for one in failed:
            if isinstance(one, urllib.error.HTTPError):
                one.close()
        assert server.faults == {"capacity": 2}
        assert all(end - start >= 0.3 for start, end in server.times)
        url = server.url
        waiting = pool.submit(post, server, {"prompt": "gone"})
        while server.requests < 5:
            time.sleep(0.01)
        server.stop()
        assert isinstance(waiting.exception(), ConnectionError)
        with pytest.raises(urllib.error.URLError, match="refused"):
            post(server, {"prompt": "a"})
        server.start()
        assert server.url == url
        assert post(server, {"prompt": "a"})["choices"]
        assert (server.answered["gone"], server.faults["gone"]) == (0, 1)


def test_what_hangs_ends_with_the_server() -> None:
    with ThreadPoolExecutor(8) as pool:
        with Injector(Faults(rate_hang=1.0)) as server:
            asked = [pool.submit(post, server, {"prompt": "a"}, timeout=60) for _ in range(8)]
            while server.requests < 8:
                time.sleep(0.01)
            start = time.monotonic()
        for one in asked:
            with contextlib.suppress(ConnectionError):
                one.result()
        assert time.monotonic() - start < 1
