"""The server of a masked-diffusion engine: real clients, on the model that knows 64 answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from tools.training.memoriser import MEMORISER, pairs
from workbench import Sampling
from workbench.engines.diffusion import Denoiser, DiffusionEngine, Row
from workbench.engines.remote import RemoteEngine
from workbench.errors import InputError
from workbench.serving.diffusion_server import DiffusionServer, serve_diffusion

ANSWERS = dict(pairs()[-24:])
LONG = [prompt for prompt, answer in ANSWERS.items() if len(answer) > 40]
EMOJI, LINES = "Hello!", "Question: Tell me about Anna and Ben.\nAnswer:"
# Many forwards after the first text: for what is to be seen in the middle of them.
SLOW = {"prompt": LINES, "max_tokens": 192, "steps": 192, "ignore_eos": True, "stream": True}
SECONDS = 60.0
PROGRAM = """
import sys
from workbench.engines.diffusion import DiffusionEngine
from workbench.serving.diffusion_server import serve_diffusion
with DiffusionEngine(sys.argv[1], None, "test", {"threshold": 0.9}) as engine:
    for _ in range(2):
        server = serve_diffusion(engine, batch_size=2, max_wait_time=0)
        print(server.url, flush=True)
        code = server.run()
        print(code, flush=True)
sys.exit(code)
"""
CLIENT = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], sys.argv[2].encode())
for line in urllib.request.urlopen(request):
    print(line, flush=True)
"""


@pytest.fixture(scope="module", autouse=True)
def program() -> Iterator[subprocess.Popen[str]]:
    """A server in a separate process, loading while the other tests run."""
    line = [sys.executable, "-c", PROGRAM, str(MEMORISER)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@pytest.fixture(scope="module")
def engine() -> Iterator[DiffusionEngine]:
    with DiffusionEngine(str(MEMORISER), None, "test", {"threshold": 0.9}) as opened:
        yield opened


@pytest.fixture(scope="module")
def answers(engine: DiffusionEngine) -> dict[str, str]:
    """What the engine itself says."""
    rows = engine.generate([*ANSWERS], Sampling(max_tokens=96))
    return dict(zip(ANSWERS, (row.text for row in rows), strict=True))


@pytest.fixture(scope="module")
def _server(engine: DiffusionEngine) -> Iterator[DiffusionServer]:
    with serve_diffusion(engine, max_wait_time=0.01) as started:
        yield started


@pytest.fixture
def server(_server: DiffusionServer) -> Iterator[DiffusionServer]:
    """A server with nothing in it."""
    yield _server
    assert get(_server, "/health")["live"] == 0


def get(server: DiffusionServer, path: str) -> Any:
    return httpx.get(server.url.removesuffix("/v1") + path, timeout=SECONDS).json()


def post(server: DiffusionServer, path: str, body: Any) -> httpx.Response:
    root = server.url if path.endswith("completions") else server.url.removesuffix("/v1")
    return httpx.post(root + path, json=body, timeout=SECONDS)


def complete(server: DiffusionServer, prompt: Any, **fields: Any) -> Any:
    response = post(server, "/completions", {"prompt": prompt, "max_tokens": 96, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def test_a_setting_that_changes_answers_changes_the_revision() -> None:
    names = set()
    for settings in ({}, {"threshold": 0.9}, {"threshold": 0.5}, {"batch_size": 2}):
        with DiffusionEngine(None, None, "test", settings) as one, serve_diffusion(one) as server:
            names.add(server.names[1])
    assert len(names) == 3  # how many rows run at once changes nothing


def client(server: DiffusionServer) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=server.url, api_key="any", max_retries=0, timeout=SECONDS)


@contextlib.asynccontextmanager
async def streaming(server: DiffusionServer, **fields: Any) -> AsyncIterator[AsyncIterator[str]]:
    """The events of a request that is in the server's queue."""
    async with httpx.AsyncClient(timeout=SECONDS) as http:
        url, body = f"{server.url}/completions", {**SLOW, **fields}
        async with http.stream("POST", url, json=body) as response:
            assert response.status_code == 200
            lines = response.aiter_lines()
            yield (line.removeprefix("data: ") async for line in lines if line)


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Poll the server until the condition holds: it cannot call us."""
    async with asyncio.timeout(SECONDS):
        while not await holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def health(server: DiffusionServer) -> Any:
    async with httpx.AsyncClient(timeout=SECONDS) as http:
        return (await http.get(server.url.removesuffix("/v1") + "/health")).json()


def test_answers_are_those_of_the_engine(server: DiffusionServer, engine: DiffusionEngine) -> None:
    prompts, sampling = [*ANSWERS], Sampling(max_tokens=96)
    mine = engine.generate(prompts, sampling)
    assert sum(row.text == ANSWERS[p] for p, row in zip(prompts, mine, strict=True)) > 20
    with RemoteEngine(None, None, "test", {"base_url": server.url}) as remote:
        theirs = remote.generate(prompts, sampling)
        assert remote.info.revision == engine.variant
        assert remote.info.context_length == engine.info.context_length
    for a, b in zip(mine, theirs, strict=True):
        assert (a.text, a.finish_reason) == (b.text, b.finish_reason)
    assert sum(r.completion_tokens for r in mine) == sum(r.completion_tokens for r in theirs)
    assert sum(r.prompt_tokens for r in mine) == sum(r.prompt_tokens for r in theirs)


def test_each_request_of_a_batch_gets_what_it_gets_alone(engine: DiffusionEngine) -> None:
    asked: list[dict[str, Any]] = [
        {"prompt": LONG[0], "max_tokens": 5},
        {"prompt": LONG[1], "max_tokens": 96, "steps": 48},
        {"prompt": EMOJI, "max_tokens": 40, "temperature": 3.0, "seed": 1},
        {"prompt": EMOJI, "max_tokens": 40, "temperature": 3.0, "seed": 2},
        {"prompt": LINES, "max_tokens": 96, "threshold": 0.5, "stop": "\n\n"},
        {"prompt": LONG[2], "max_tokens": 64, "cfg_scale": 0.5, "block_length": 16},
        {"prompt": LONG[3], "max_tokens": 64, "remasking": "random", "steps": 32, "seed": 3},
        {"prompt": LONG[3], "max_tokens": 64, "cache": "dual", "logprobs": 2},
    ]

    async def all_at_once(server: DiffusionServer) -> list[Any]:
        fields: list[Any] = [{"model": server.model, "extra_body": body} for body in asked]
        async with client(server) as some:
            return await asyncio.gather(*(some.completions.create(prompt="", **f) for f in fields))

    with serve_diffusion(engine, batch_size=1, max_wait_time=0) as server:
        alone = [complete(server, **body) for body in asked]
    with serve_diffusion(engine, batch_size=len(asked), max_wait_time=1e6) as server:
        together = [answer.model_dump() for answer in asyncio.run(all_at_once(server))]
        stats = get(server, "/batch/stats")
    assert stats["batches"] == 1
    assert max(map(int, stats["fill"])) >= len(asked) - 1  # one of them is in a cache at times
    for a, b in zip(alone, together, strict=True):
        for choice in (a["choices"][0], b["choices"][0]):
            choice["logprobs"] = bool(choice["logprobs"])  # equal but for rounding
        assert a["choices"] == b["choices"]
        assert a["usage"] == {k: b["usage"][k] for k in a["usage"]}
        assert a["denoising"] == b["denoising"]
    texts = [answer["choices"][0]["text"] for answer in alone]
    assert texts[2] != texts[3]
    assert texts[4] == ANSWERS[LINES].partition("\n\n")[0]


def test_ends_and_usage_are_true(server: DiffusionServer, engine: DiffusionEngine) -> None:
    answer = complete(server, "17+25=42", max_tokens=64)
    assert answer["choices"][0]["text"] == " True"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert "stop_reason" not in answer["choices"][0]
    prompt = len(engine.encode("17+25=42"))
    assert answer["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 2,  # with the one that ends it, without the rest of the canvas
        "total_tokens": prompt + 2,
    }
    cut = complete(server, LINES, max_tokens=7)
    assert cut["choices"][0]["finish_reason"] == "length"
    assert cut["usage"]["completion_tokens"] == 7
    stopped = complete(server, LINES, stop=["Ben", "12"])["choices"][0]
    assert (stopped["text"], stopped["finish_reason"]) == (" Anna has ", "stop")


def test_steps_and_thresholds_switch_each_other_off(server: DiffusionServer) -> None:
    forced = {"max_tokens": 64, "ignore_eos": True}
    assert complete(server, LINES, **forced, steps=16)["denoising"]["forwards"] == 16
    quick, sure = (complete(server, LINES, **forced, threshold=t) for t in (0.0, 1.0))
    assert quick["denoising"]["forwards"] == 2  # a block each
    assert (
        sure["denoising"]["forwards"] > complete(server, LINES, **forced)["denoising"]["forwards"]
    )


def test_seeds_repeat_and_those_of_a_list_are_the_engines(
    server: DiffusionServer, engine: DiffusionEngine
) -> None:
    hot: dict[str, Any] = {"temperature": 4.0, "max_tokens": 12}
    one, same = (complete(server, EMOJI, **hot, seed=5) for _ in range(2))
    assert one["choices"] == same["choices"]
    fresh = {complete(server, EMOJI, **hot)["choices"][0]["text"] for _ in range(4)}
    assert len(fresh) > 1
    listed = complete(server, [EMOJI, EMOJI, LINES], **hot, seed=5)
    rows = engine.generate([EMOJI, EMOJI, LINES], Sampling(**hot, seed=5))
    assert [choice["index"] for choice in listed["choices"]] == [0, 1, 2]
    assert [choice["text"] for choice in listed["choices"]] == [row.text for row in rows]
    assert rows[0].text != rows[1].text


def test_prompts_may_be_texts_tokens_or_lists_of_them(
    server: DiffusionServer, engine: DiffusionEngine, answers: dict[str, str]
) -> None:
    one = complete(server, LINES)
    ids = [engine.encode(prompt) for prompt in (LINES, EMOJI)]
    assert complete(server, ids[0])["choices"] == one["choices"]
    several = complete(server, ids)
    assert [c["text"] for c in several["choices"]] == [answers[LINES], answers[EMOJI]]
    assert several["usage"]["prompt_tokens"] == sum(map(len, ids))


def test_the_sync_client_works_unchanged(server: DiffusionServer, engine: DiffusionEngine) -> None:
    talk = [{"role": "user", "content": EMOJI}]
    (wanted,) = engine.generate([talk], Sampling(max_tokens=96))
    sync = openai.OpenAI(base_url=server.url, api_key="any", max_retries=0)
    cards = sync.models.list().data
    assert [card.id for card in cards] == [*server.names]
    assert all(card.model_dump()["max_model_len"] == 512 for card in cards)
    for name in server.names:
        answer = sync.chat.completions.create(
            model=name,
            messages=talk,  # type: ignore[arg-type]
            max_completion_tokens=96,
            max_tokens=1,
        )
        assert answer.choices[0].message.content == wanted.text
        assert answer.model == name
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo!"}]
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 96}
    whole = post(server, "/chat/completions", body).json()
    assert whole["choices"][0]["message"]["content"] == wanted.text
    with pytest.raises(openai.NotFoundError, match=re.escape(server.model)) as refused:
        sync.completions.create(model="gpt", prompt="x")
    assert refused.value.code == "model_not_found"


def test_log_probabilities_are_the_engines(
    server: DiffusionServer, engine: DiffusionEngine
) -> None:
    (row,) = engine.generate([LINES], Sampling(max_tokens=16, logprobs=2))
    assert row.logprobs is not None
    wanted = [t.logprob for t in row.logprobs]
    scores = complete(server, LINES, max_tokens=16, logprobs=2)["choices"][0]["logprobs"]
    assert "".join(scores["tokens"]) == row.text
    assert scores["token_logprobs"] == pytest.approx(wanted, abs=1e-4)
    assert all(2 <= len(top) <= 3 for top in scores["top_logprobs"])
    chat = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 16}
    answer = post(server, "/chat/completions", {**chat, "logprobs": True, "top_logprobs": 2}).json()
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == answer["usage"]["completion_tokens"]
    assert all(len(one["top_logprobs"]) == 2 for one in content)
    joined = b"".join(bytes(one["bytes"]) for one in content)
    assert joined.decode(errors="replace") == answer["choices"][0]["message"]["content"]


def test_streams_are_real_and_exact(server: DiffusionServer, answers: dict[str, str]) -> None:
    async def streamed(prompt: str, *, chat: bool) -> tuple[list[str], list[Any]]:
        asked: Any = {"model": server.model, "max_tokens": 96, "stream": True}
        asked["stream_options"] = {"include_usage": True}
        async with client(server) as some:
            if chat:
                talk: Any = [{"role": "user", "content": prompt}]
                made = await some.chat.completions.create(messages=talk, **asked)
            else:
                made = await some.completions.create(prompt=prompt, **asked)
            chunks = [chunk async for chunk in made]
        said = [chunk.choices[0] for chunk in chunks if chunk.choices]
        parts = [choice.delta.content if chat else choice.text for choice in said]
        return [part for part in parts if part], chunks

    for prompt in (LINES, EMOJI, *LONG[:2]):
        for chat in (False, True):
            parts, chunks = asyncio.run(streamed(prompt, chat=chat))
            body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 96}
            whole = (
                post(server, "/chat/completions", body).json() if chat else complete(server, prompt)
            )
            said = whole["choices"][0]
            assert "".join(parts) == (said["message"]["content"] if chat else said["text"])
            assert len(parts) >= 2  # a block each
            assert chunks[-2].choices[0].finish_reason == said["finish_reason"] == "stop"
            assert chunks[-2].model_dump()["denoising"] == whole["denoising"]
            assert chunks[-1].usage.model_dump(exclude_none=True) == whole["usage"]
            assert len({chunk.id for chunk in chunks}) == 1
            if not chat:
                assert said["text"] == answers[prompt]


def test_a_list_of_prompts_streams_with_their_numbers(
    server: DiffusionServer, answers: dict[str, str]
) -> None:
    async def streamed() -> list[str]:
        texts = ["", ""]
        fields = {"prompt": [LINES, EMOJI], "max_tokens": 96, "threshold": 0.9, "steps": None}
        async with streaming(server, **fields, ignore_eos=False) as events:
            async for event in events:
                for choice in json.loads(event)["choices"] if event != "[DONE]" else ():
                    texts[choice["index"]] += choice["text"]
        assert event == "[DONE]"
        return texts

    assert asyncio.run(streamed()) == [answers[LINES], answers[EMOJI]]


def test_others_are_answered_while_it_generates(server: DiffusionServer) -> None:
    async def look() -> None:
        async with streaming(server) as events:
            await anext(events)
            now = await health(server)
            assert (now["status"], now["live"], now["waiting"]) == ("ok", 1, 0)
            async with client(server) as others:
                quick = await others.completions.create(
                    model=server.model, prompt="17+25=42", max_tokens=8
                )
            assert quick.choices[0].text == " True"  # it joined at the next step
            assert (await health(server))["live"] == 1
        await until(lambda: idle(server))

    asyncio.run(look())


async def idle(server: DiffusionServer) -> bool:
    now = await health(server)
    return bool(now["live"] == now["waiting"] == 0)


def test_a_full_batch_starts_at_once_and_a_part_of_one_waits(engine: DiffusionEngine) -> None:
    quick = {"prompt": "17+25=42", "threshold": 0.9, "steps": None, "max_tokens": 2}

    async def burst() -> None:
        with serve_diffusion(engine, batch_size=4, max_wait_time=1e6) as server:
            async with contextlib.AsyncExitStack() as stack:
                opened = [
                    await stack.enter_async_context(streaming(server, **quick)) for _ in range(3)
                ]
                assert (await health(server))["waiting"] == 3
                assert get(server, "/batch/stats")["forwards"] == 0
                opened.append(await stack.enter_async_context(streaming(server, **quick)))
                for events in opened:
                    assert [event async for event in events][-1] == "[DONE]"
            stats = get(server, "/batch/stats")
            assert stats["batches"] == 1
            assert stats["fill"].keys() == {"4"}
            assert stats["requests"] == 4

    asyncio.run(burst())
    with serve_diffusion(engine, batch_size=4, max_wait_time=0.05) as server:
        assert complete(server, "17+25=42")["choices"][0]["text"] == " True"
        assert get(server, "/batch/stats")["wait_seconds"]["p50"] >= 0.05


def test_what_the_queue_cannot_hold_may_be_retried(engine: DiffusionEngine) -> None:
    async def fill() -> None:
        with serve_diffusion(engine, batch_size=4, queue_size=4, max_wait_time=1e6) as server:
            async with streaming(server, prompt=["1"] * 3, max_tokens=2, steps=2) as events:
                refused = post(server, "/completions", {"prompt": ["1", "2"]})
                assert refused.status_code == 429
                assert int(refused.headers["Retry-After"]) >= 1
                assert refused.json()["error"]["type"] == "rate_limit_error"
                never = post(server, "/completions", {"prompt": ["1"] * 5})
                assert never.status_code == 400
                assert "several requests" in never.json()["error"]["message"]
                complete(server, "1", max_tokens=1)  # the fourth
                assert [event async for event in events][-1] == "[DONE]"

    asyncio.run(fill())


def test_rows_of_clients_that_leave_are_taken_out(engine: DiffusionEngine) -> None:
    async def leave(server: DiffusionServer) -> None:
        async with streaming(server) as events:
            await anext(events)  # live; the other one waits
            async with httpx.AsyncClient(timeout=SECONDS) as http:
                body = {**SLOW, "stream": False}
                waits = asyncio.create_task(http.post(f"{server.url}/completions", json=body))
                await until(lambda: waiting(server, 1))
                waits.cancel()
                await until(lambda: waiting(server, 0))
                assert (await health(server))["live"] == 1
        await until(lambda: idle(server))

    async def waiting(server: DiffusionServer, count: int) -> bool:
        return bool((await health(server))["waiting"] == count)

    with serve_diffusion(engine, batch_size=1, max_wait_time=0) as server:
        asyncio.run(leave(server))
        assert complete(server, "17+25=42")["choices"][0]["text"] == " True"
        stats = get(server, "/batch/stats")
        assert (stats["cancelled"], stats["errors"]) == (2, {})
        body = json.dumps(SLOW)
        line = [sys.executable, "-c", CLIENT, f"{server.url}/completions", body]
        with subprocess.Popen(line, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(b"b'data:")
            process.kill()
        asyncio.run(until(lambda: idle(server)))
        assert get(server, "/batch/stats")["cancelled"] == 3


def test_a_crowd_with_leavers_and_nonsense_in_it(
    engine: DiffusionEngine, answers: dict[str, str]
) -> None:
    async def crowd(server: DiffusionServer) -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=SECONDS, limits=limits) as http:

            async def one(number: int) -> None:
                prompt, answer = [*answers.items()][number % len(answers)]
                body: dict[str, Any] = {"prompt": prompt, "max_tokens": 96}
                if number % 20 == 3:
                    async with streaming(server):
                        return
                if number % 20 == 7:
                    body["temperature"] = "hot"
                response = await http.post(f"{server.url}/completions", json=body)
                if number % 20 == 7:
                    assert response.status_code == 400
                else:
                    assert response.json()["choices"][0]["text"] == answer

            await asyncio.gather(*(one(number) for number in range(96)))
        await until(lambda: idle(server))

    with serve_diffusion(engine, batch_size=16) as server:
        asyncio.run(crowd(server))
        stats = get(server, "/batch/stats")
    assert stats["requests"] == 96
    assert stats["cancelled"] == 5
    assert stats["errors"] == {"invalid_request_error": 5}
    assert sum(stats["fill"].values()) == stats["forwards"]
    assert 0 < stats["padding_share"] < 1
    assert stats["tokens_committed_per_forward"] > 1


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"n": 2}, 400, "n: must be 1"),
    ({"best_of": 3}, 400, "best_of"),
    ({"echo": True}, 400, "echo"),
    ({"tools": [{"type": "function"}]}, 400, "tools"),
    ({"guided_regex": "[0-9]+"}, 400, "guided_regex"),
    ({"stop": ["x"] * 300}, 400, "stop: at most 256"),
    ({"stop": "x" * 300}, 400, "stop: at most 256"),
    ({"prompt": "x" * 2**21}, 400, "Please reduce the length of the input messages"),
    ({"prompt": [1] * 600}, 400, "has 600 input tokens or more"),
    ({"prompt": "x" * 2**22}, 413, "send several requests"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format"),
    ({"logit_bias": {"1": 5}}, 400, "logit_bias"),
    ({"temperature": -1}, 400, "temperature=-1"),
    ({"temperature": math.inf}, 400, "temperature"),
    ({"max_tokens": 0}, 400, "max_tokens=0"),
    ({"max_tokens": "5"}, 400, "max_tokens"),
    ({"top_p": 0}, 400, "top_p"),
    ({"seed": -1}, 400, "seed"),
    ({"stop": [""]}, 400, "stop"),
    ({"steps": 1, "max_tokens": 64}, 400, "steps=1"),
    ({"steps": 8, "threshold": 0.5}, 400, "exclude each other"),
    ({"remasking": "best"}, 400, "remasking"),
    ({"cache": "triple"}, 400, "cache"),
    ({"logprobs": 21}, 400, "logprobs"),
    ({"prompt": ""}, 400, "prompt is empty"),
    ({"prompt": []}, 400, "prompt is empty"),
    ({"prompt": [[1], []]}, 400, "prompt is empty"),
    ({"prompt": ["a", 1]}, 400, "prompt: must be a text"),
    ({"prompt": [1, 10**6]}, 400, "token 1000000"),
    ({"prompt": None}, 400, "prompt"),
    ({"model": "gpt"}, 404, "known: "),
]


@pytest.mark.parametrize(("fields", "status", "words"), BAD, ids=str)
def test_what_cannot_be_done_is_refused(
    server: DiffusionServer, fields: dict[str, Any], status: int, words: str
) -> None:
    url, raw = f"{server.url}/completions", json.dumps({"prompt": "1", "max_tokens": 4, **fields})
    response = httpx.post(url, content=raw, timeout=SECONDS)
    error = response.json()["error"]
    assert (response.status_code, error.keys()) == (status, {"message", "type", "param", "code"})
    assert words in error["message"]


def test_every_failure_has_the_form_of_openai(server: DiffusionServer) -> None:
    root = server.url.removesuffix("/v1")
    for method, path, raw, status in (
        ("GET", "/v1/nothing", "", 404),
        ("GET", "/v1/models/", "", 404),
        ("GET", "/v1/completions", "", 405),
        ("POST", "/v1/completions", "{", 400),
        ("POST", "/v1/completions", "[1]", 400),
        ("POST", "/v1/completions", '{"prompt": "\\ud800"}', 400),
        ("POST", "/v1/chat/completions", '{"messages": []}', 400),
        ("POST", "/v1/chat/completions", '{"messages": [{"content": "x"}]}', 400),
        ("POST", "/v1/chat/completions", '{"messages": [{"role": "user"}]}', 400),
        ("POST", "/detokenize", '{"tokens": [-1]}', 400),
        ("POST", "/tokenize", "{}", 400),
    ):
        response = httpx.request(method, root + path, content=raw, timeout=SECONDS)
        assert response.status_code == status, (path, raw, response.text)
        assert response.json()["error"]["message"]
    assert httpx.put(root).status_code == 200  # how some ask whether it is ready


def test_nulls_are_absent_and_nothing_is_dropped_in_silence(server: DiffusionServer) -> None:
    plain = complete(server, LINES)
    names = (
        "max_completion_tokens temperature top_p top_k min_p seed stop n logprobs stream "
        "stream_options steps block_length threshold cache echo tools logit_bias "
        "response_format best_of presence_penalty odd"
    )
    nulls = dict.fromkeys(names.split())
    neutral = {"presence_penalty": 0, "repetition_penalty": 1.0, "top_k": -1, "tools": []}
    for fields in (nulls, neutral):
        answer = complete(server, LINES, **fields)
        assert answer["choices"] == plain["choices"]
        assert "warnings" not in answer
    odd = {"presence_penalty": 0.5, "spaces_between_special_tokens": True}
    answer = complete(server, LINES, **odd)
    assert answer["choices"] == plain["choices"]
    assert len(answer["warnings"]) == 2
    assert all(name in text for name, text in zip(odd, answer["warnings"], strict=True))


def test_an_overflow_is_reported_in_the_words_that_clients_read(server: DiffusionServer) -> None:
    ids = [10] * 500
    for fields, tokens in (({"max_tokens": 13}, 500), ({"prompt": ids + ids}, 1000)):
        response = post(server, "/completions", {"prompt": ids, **fields})
        assert response.status_code == 400
        said = response.json()["error"]["message"]
        found = re.search(
            r"maximum context length is (\d+) tokens.*request has (\d+) input tokens", said
        )
        assert found is not None
        assert found.groups() == ("512", str(tokens))
        assert "reduce the length of the input messages" in said
    fits = complete(server, ids, max_tokens=None, ignore_eos=True)  # what the context leaves
    assert fits["usage"]["completion_tokens"] == 12


def test_the_masks_name_in_a_prompt_is_plain_text(
    server: DiffusionServer, engine: DiffusionEngine
) -> None:
    name, mask = engine.tokenizer.mask_token, engine.tokenizer.mask_token_id
    tokenized = post(server, "/tokenize", {"prompt": f"a {name} b"}).json()
    assert mask not in tokenized["tokens"]
    assert tokenized["count"] == len(tokenized["tokens"])
    assert tokenized["max_model_len"] == 512
    assert post(server, "/detokenize", tokenized).json() == {"prompt": f"a {name} b"}
    asked = complete(server, f"a {name} b", max_tokens=4)
    assert asked["usage"]["prompt_tokens"] == tokenized["count"]
    talk = [{"role": "user", "content": name}]
    assert mask not in post(server, "/tokenize", {"messages": talk}).json()["tokens"]
    refused = post(server, "/completions", {"prompt": [5, mask, 5]})
    assert refused.status_code == 400
    assert "mask" in refused.json()["error"]["message"]


def test_a_key_is_asked_for_and_never_shown(
    engine: DiffusionEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("WORKBENCH_API_KEY", "open-sesame")
    with serve_diffusion(engine) as server:
        assert get(server, "/health")["status"] == "ok"
        for sent in (b"", b"Bearer open-sesam", "Bearer é".encode()):
            for path in (
                "/v1/models",
                "/v1/completions",
                "/",
                "/docs",
                "/batch/stats",
                "/tokenize",
            ):
                headers = {b"Authorization": sent}
                root = server.url.removesuffix("/v1")
                refused = httpx.post(root + path, headers=headers, json={"prompt": "1"})
                assert refused.status_code == 401
                assert refused.json()["error"]["type"] == "authentication_error"
        known = openai.OpenAI(base_url=server.url, api_key="open-sesame")
        assert known.models.list().data[0].id == server.model
        sloppy = {"Authorization": "bearer  open-sesame"}
        assert httpx.get(f"{server.url}/models", headers=sloppy).status_code == 200
        stats = httpx.get(server.url.removesuffix("/v1") + "/batch/stats", headers=sloppy).json()
        assert stats["errors"] == {"authentication_error": 18}
        assert "sesam" not in repr(server) + repr(vars(server)) + caplog.text
    with pytest.raises(InputError, match="batch_size"):
        serve_diffusion(engine, batch_size=0)
    monkeypatch.delenv("WORKBENCH_API_KEY")
    with serve_diffusion(engine, host="0.0.0.0"):
        assert "anyone who can reach it" in caplog.text


def test_a_taken_port_is_named(server: DiffusionServer, engine: DiffusionEngine) -> None:
    port = int(server.url.removesuffix("/v1").rpartition(":")[2])
    with pytest.raises(InputError, match=f"port={port}"):
        serve_diffusion(engine, port=port)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    for _ in range(2):  # it is free again at once
        with serve_diffusion(engine, port=free) as own:
            assert complete(own, "17+25=42")["choices"][0]["text"] == " True"
    with pytest.raises(httpx.ConnectError):
        get(own, "/health")


def test_a_bad_row_fails_alone(
    server: DiffusionServer, answers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = Row.commit

    def spoilt(row: Row, *args: Any) -> int:
        if row.sampling.seed == 13 or len(row.prompt) == 1:
            row.fail("the model's logits are not numbers")
            return 0
        return commit(row, *args)

    monkeypatch.setattr(Row, "commit", spoilt)
    bad, good = [5], server_ids(server, LINES)
    alone = post(server, "/completions", {"prompt": bad})
    assert alone.status_code == 500
    assert alone.json()["error"]["message"] == "the model's logits are not numbers"
    mixed = complete(server, [good, bad])
    assert mixed["choices"][0]["text"] == answers[LINES]
    assert mixed["choices"][1]["finish_reason"] == "error"
    assert "not numbers" in mixed["choices"][1]["error"]["message"]

    async def streamed() -> list[str]:
        async with streaming(server, prompt=bad) as events:
            return [event async for event in events]

    (event,) = asyncio.run(streamed())
    assert "not numbers" in json.loads(event)["error"]["message"]


def server_ids(server: DiffusionServer, text: str) -> list[int]:
    ids: list[int] = post(server, "/tokenize", {"prompt": text}).json()["tokens"]
    return ids


def test_a_model_that_breaks_costs_what_was_in_it_and_no_more(
    server: DiffusionServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def broken(self: Denoiser) -> list[Row]:
            raise RuntimeError("the card has fallen off the bus")

        patch.setattr(Denoiser, "step", broken)
        lost = post(server, "/completions", {"prompt": "1"})
        assert lost.status_code == 500
        assert "fallen off the bus" in lost.json()["error"]["message"]
    assert complete(server, "17+25=42")["choices"][0]["text"] == " True"


def test_a_model_that_is_broken_for_good_is_reported(
    engine: DiffusionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Denoiser) -> list[Row]:
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(Denoiser, "step", broken)
    with serve_diffusion(engine, max_wait_time=0) as server:
        for status in (500, 500, 503):
            assert post(server, "/completions", {"prompt": "1"}).status_code == status
        assert get(server, "/health")["status"] == "broken"
        assert server.run() == 1


def test_the_model_answers_to_the_path_that_it_was_given_by(engine: DiffusionEngine) -> None:
    with serve_diffusion(engine, name="mine", aliases=["models/mine"]) as server:
        assert get(server, "/v1/models")["data"][0]["id"] == "mine"
        for name in ("mine", "models/mine", engine.info.model):
            assert complete(server, "17+25=42", model=name)["choices"][0]["text"] == " True"


async def ended_in_the_middle(process: subprocess.Popen[str], *, impatient: bool) -> list[str]:
    """What a stream still gets from a server that receives SIGTERM."""
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    root = url.removesuffix("/v1")
    async with httpx.AsyncClient(timeout=SECONDS) as http:

        async def draining() -> bool:
            now = await http.get(f"{root}/health")
            return now.status_code == 503 and now.json()["status"] == "draining"

        many = 64 if impatient else 8  # two at once: time enough for what follows
        body = SLOW | {"prompt": ["1"] * many}
        async with http.stream("POST", f"{url}/completions", json=body) as response:
            lines = response.aiter_lines()
            texts = [await anext(lines)]
            process.send_signal(signal.SIGTERM)
            await until(draining)
            refused = await http.post(f"{url}/completions", json={"prompt": "1"})
            assert refused.status_code == 503
            assert "error" in refused.json()
            process.send_signal(signal.SIGTERM)  # a cluster's, beside that of its script
            if impatient:
                process.send_signal(signal.SIGINT)
            return texts + [line async for line in lines if line]


def test_sigterm_lets_requests_finish_and_an_interrupt_after_it_does_not(
    program: subprocess.Popen[str],
) -> None:
    assert program.stdout is not None
    assert "was closed" in "".join(asyncio.run(ended_in_the_middle(program, impatient=True)))
    assert program.stdout.readline().strip() == "1"
    events = asyncio.run(ended_in_the_middle(program, impatient=False))
    assert events[-1] == "data: [DONE]"
    assert "was closed" not in "".join(events)
    assert program.stdout.readline().strip() == "0"
    assert program.wait(SECONDS) == 0
