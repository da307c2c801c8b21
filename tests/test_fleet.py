"""Many servers behind one engine: listed in a folder or file that changes, with even work."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from benchmarks.bodies import Query
from benchmarks.faults import REVISION
from benchmarks.injector import Injector
from workbench import Sampling, open_engine
from workbench.engines.remote import RemoteEngine, fleet
from workbench.engines.remote.endpoint import Endpoint
from workbench.engines.remote.fleet import urls_of
from workbench.engines.remote.placement import last_shares, place, prefix_of, shares
from workbench.engines.remote.settings import RemoteOptions, shown_url
from workbench.errors import EngineGoneError, EngineUnavailableError, InputError
from workbench.types import Engine, Prompt

SHORT = Sampling(max_tokens=8)


@pytest.fixture
def servers() -> Iterator[list[Injector]]:
    with ExitStack() as until:
        yield [until.enter_context(Injector(revision=REVISION, latency=0.02)) for _ in range(4)]


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists are read, and servers looked at, several times per second."""
    monkeypatch.setattr(fleet, "INTERVAL", 0.1)
    monkeypatch.setattr("workbench.engines.remote.fleet.JOIN", 0.1)


def remote(base_url: object, model: str | None = None, **options: Any) -> RemoteEngine:
    return RemoteEngine(model, None, "test", {"base_url": base_url, **options})


def ready(folder: Path, name: str, server: Injector, **more: object) -> Path:
    """A readiness file as `workbench slurm serve` writes it."""
    file = folder / f"{name}.json"
    entry = {"host": "", "port": 1, "url": server.url, "job_id": name, "model": None, **more}
    file.write_text(json.dumps(entry))
    return file


def right(engine: Engine, prompts: list[str]) -> None:
    rows = engine.generate(prompts, SHORT)
    assert [row.text for row in rows] == [f"answer to {prompt}" for prompt in prompts]


def once(servers: list[Injector], prompts: list[str]) -> None:
    answered = sum((server.answered for server in servers), Counter[str]())
    assert {answered[prompt] for prompt in prompts} == {1}


def test_a_folder_and_a_file_list_servers(tmp_path: Path, servers: list[Injector]) -> None:
    folder, text = tmp_path / "slurm", tmp_path / "urls.txt"
    folder.mkdir()
    with pytest.raises(EngineUnavailableError, match="lists no server yet"):
        remote(str(folder))
    for number, server in enumerate(servers):
        ready(folder, f"job-1_{number}", server)
    (folder / "half.json").write_text('{"url": "http://127')
    (folder / "other.json").write_text('["no url"]')
    (folder / "job.log").write_text("http://127.0.0.1:9/v1")
    ready(folder, "elsewhere", servers[0], host="node7", url="http://127.0.0.1:9/v1")
    assert urls_of(str(folder)) == urls_of(folder) == [server.url for server in servers]
    lines = ["# ours", "", *(f"{server.url}  # node" for server in servers), servers[0].url]
    text.write_text("\n".join(lines))
    assert urls_of(str(text)) == [server.url for server in servers]
    assert urls_of(f"{servers[0].url},{servers[1].url}") == [one.url for one in servers[:2]]
    for where in (folder, text):
        with open_engine(engine="remote", base_url=str(where), store=None) as engine:
            assert engine.info.device == f"4 servers of {where}"
            assert engine.info.options["base_url"] == str(where)
            right(engine, prompts := [f"{where.name} {i}" for i in range(64)])
    once(servers, prompts)
    for bad, said in ((tmp_path / "none", "folder or file that lists"), ("::", "must begin with")):
        with pytest.raises(InputError, match=said):
            remote(str(bad))


@pytest.mark.usefixtures("often")
def test_servers_come_and_go_during_a_call(tmp_path: Path, servers: list[Injector]) -> None:
    files = {number: ready(tmp_path, str(number), servers[number]) for number in (0, 1)}
    prompts = [f"prompt {i}" for i in range(2000)]
    with remote(str(tmp_path), prompts_per_request=1, max_concurrency=4) as engine:
        rows = {}
        for index, row in engine.stream(prompts, SHORT):
            rows[index] = row.text
            if len(rows) == 100:
                for number in (2, 3):
                    ready(tmp_path, str(number), servers[number])
                files[0].unlink()
            if len(rows) == 1000:
                at_half = servers[0].requests
        assert "3 servers" in engine.info.device
    assert rows == {i: f"answer to {prompt}" for i, prompt in enumerate(prompts)}
    once(servers, prompts)
    assert servers[0].requests == at_half  # none after it has vanished
    assert min(server.requests for server in servers[1:]) > 200


@pytest.mark.usefixtures("often")
def test_a_server_with_another_model_is_refused(
    tmp_path: Path, servers: list[Injector], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "workbench")
    ready(tmp_path, "0", servers[0])
    with Injector(revision="fedcba987654", latency=0.02) as other, Injector(model="b") as wrong:
        with remote(str(tmp_path), prompts_per_request=1, max_concurrency=4) as engine:
            for index, _ in enumerate(engine.stream([f"p {i}" for i in range(800)], SHORT)):
                if index == 50:
                    ready(tmp_path, "1", other)
                    ready(tmp_path, "2", wrong)
        assert other.requests == wrong.requests == 0
        refused = [one for one in caplog.messages if "cannot join" in one]
        assert len(refused) == 2
        # Servers of several models may share a folder, if the model is named.
        with remote(str(tmp_path), "b") as engine:
            assert engine.info.device == f"1 server of {tmp_path}"
        with pytest.raises(InputError, match="Several servers must have the same model"):
            remote(str(tmp_path))


@pytest.mark.usefixtures("often")
def test_a_list_that_vanishes_is_no_reason_to_stop(tmp_path: Path, servers: list[Injector]) -> None:
    """A folder may be cleared or not be readable for a while; servers that are gone are an end."""
    file = ready(tmp_path, "0", servers[0])
    with remote(str(tmp_path), prompts_per_request=1, max_concurrency=2) as engine:
        rows = 0
        for _ in engine.stream([f"p {i}" for i in range(100)], SHORT):
            rows += 1
            if rows == 10:
                file.unlink()
        assert rows == 100
    file = ready(tmp_path, "0", servers[0])
    slow: dict[str, Any] = {"prompts_per_request": 1, "max_concurrency": 2}
    with remote(str(tmp_path), outage_timeout=1.0, **slow) as engine:
        stream = engine.stream([f"q {i}" for i in range(100)], SHORT)
        assert len([next(stream) for _ in range(10)]) == 10
        file.unlink()
        servers[0].stop()
        with pytest.raises(EngineGoneError, match="nothing but failures"):
            list(stream)


@pytest.mark.usefixtures("often")
def test_servers_that_die_lose_and_repeat_nothing(tmp_path: Path, servers: list[Injector]) -> None:
    for number, server in enumerate(servers):
        ready(tmp_path, str(number), server)
    prompts, ended = [f"prompt {i}" for i in range(3000)], threading.Event()

    def kill() -> None:
        for victim in servers * 10:
            if ended.wait(0.3):
                return
            victim.stop()
            time.sleep(0.2)
            victim.start()

    killer = threading.Thread(target=kill)
    with remote(str(tmp_path), prompts_per_request=2, max_concurrency=16) as engine:
        killer.start()
        try:
            right(engine, prompts)
        finally:
            ended.set()
            killer.join()
        assert engine.usage.retries > 0
    once(servers, prompts)


def test_an_answer_of_a_fleet_is_stored_for_the_fleet(tmp_path: Path) -> None:
    """Ports change from job to job. Without a revision, the fingerprint and the path count."""
    folder, store = tmp_path / "slurm", tmp_path / "s.sqlite"
    folder.mkdir()
    asked = []
    for _ in range(2):
        with Injector() as server:
            file = ready(folder, "0", server)
            with open_engine(engine="remote", base_url=str(folder), store=store) as engine:
                rows = engine.generate(["a", "b"], SHORT)
            asked.append([row.from_store for row in rows])
            file.unlink()
    assert asked == [[False, False], [True, True]]


def endpoints(count: int) -> list[Endpoint]:
    return [Endpoint(f"http://127.0.0.1:{9000 + i}/v1", RemoteOptions()) for i in range(count)]


def test_a_prefix_prefers_its_server_while_loads_are_even() -> None:
    free = endpoints(8)
    for one in free:
        one.limit.open()
    beginnings = [f"{group} " * 200 for group in range(100)]
    numbers = [prefix_of(f"{start}one question", f"{start}other") for start in beginnings]
    longer = [prefix_of(f"{start}one quest", f"{start}one question") for start in beginnings]
    assert sum(one == other for one, other in zip(numbers, longer, strict=True)) >= 80
    assert len(set(numbers)) == 100
    assert prefix_of("abc", "abd") == prefix_of("", "") == 0
    home = [place(free, number, 10**6) for number in numbers]
    assert len(set(home)) == 8
    assert [place(free, number, 10**6) for number in numbers] == home
    # Without one server, only its own prefixes move.
    left = [one for one in free if one is not home[0]]
    moved = [place(left, number, 10**6) for number in numbers]
    assert all(new is old for new, old in zip(moved, home, strict=True) if old is not home[0])
    # One prefix for all: no server gets more than a quarter above the least, and in the end none.
    for count in range(400):
        place(free, numbers[0], 400 - count).limit.enter()
        loads = [one.limit.busy for one in free]
        assert max(loads) <= max(1, 1.25 * (min(loads) + 1))
    assert {one.limit.busy for one in free} == {50}


def test_packets_follow_the_number_of_servers(servers: list[Injector]) -> None:
    with remote([server.url for server in servers]) as engine:
        right(engine, [f"prompt {i}" for i in range(100)])
        work = [len(body["prompt"]) for one in servers for body in one.bodies]
        assert (sum(work), max(work)) == (100, 7)
        assert max(sum(one.answered.values()) for one in servers) <= 28


class Gateway(Injector):
    """vLLM behind a gateway that knows one prompt: it refuses several, or joins their texts."""

    def __init__(self, status: int) -> None:
        super().__init__(revision=REVISION)
        self._status = status

    async def _generate(self, request: Any, query: Query) -> Any:
        if len(query.keys) > 1 and self._status == 200:
            query = replace(query, keys=("".join(query.keys),), ids=query.ids[:1])
        elif len(query.keys) > 1:
            body = {"error": {"message": "prompt must be a text"}}
            return web.json_response(body, status=self._status)
        return await super()._generate(request, query)


@pytest.mark.parametrize("status", [200, 400, 404, 422, 500])
def test_a_gateway_that_knows_one_prompt_gives_no_answer_of_several(status: int) -> None:
    prompts = [f"prompt {i}" for i in range(40)]
    with Gateway(status) as server:
        with remote(server.url) as engine:
            right(engine, prompts)
            before = server.requests
            right(engine, others := [f"another {i}" for i in range(40)])
            assert server.requests - before == 40  # one each: it has learnt that
            rows = engine.label_logprobs(prompts, ["a", "b"])
        with remote(server.url, prompts_per_request=1) as alone:
            assert (rows.logprobs == alone.label_logprobs(prompts, ["a", "b"]).logprobs).all()
        with remote(server.url) as fresh:  # labels first
            assert (rows.logprobs == fresh.label_logprobs(prompts, ["a", "b"]).logprobs).all()
        assert {server.answered[prompt] for prompt in others} == {1}


@pytest.mark.usefixtures("often")
def test_a_list_that_is_wrong_during_a_call_is_reported(
    tmp_path: Path, servers: list[Injector], caplog: pytest.LogCaptureFixture
) -> None:
    listed = tmp_path / "urls.txt"
    listed.write_text(servers[0].url)
    with remote(str(listed), prompts_per_request=1, max_concurrency=2) as engine:
        for index, _ in enumerate(engine.stream([f"p {i}" for i in range(150)], SHORT)):
            if index == 10:
                listed.write_text(f"{servers[0].url}\nhttp//127.0.0.1:8000/v1\n{servers[1].url}")
    (said,) = [one for one in caplog.messages if "servers stay as they are" in one]
    assert "http//127.0.0.1:8000/v1" in said
    with pytest.raises(InputError, match="http//127"):
        remote(str(listed))


def test_the_last_packets_are_small() -> None:
    assert [shares(count, 16) for count in (1, 64, 300, 512, 10_000)] == [1, 4, 7, 8, 64]
    assert [shares(count, 1) for count in (1, 8, 64, 10_000)] == [1, 8, 8, 64]
    left, sizes = 10_000, []
    while left:
        sizes.append(min(64, last_shares(left, 16)))
        left -= sizes[-1]
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], sizes[-2]) == (64, 8)
    assert last_shares(100, 1) == 100


class Joining(Injector):
    """Joins the prompts of a long list, as a gateway with a limit of its own may."""

    async def _generate(self, request: Any, query: Query) -> Any:
        if len(query.keys) > 4:
            query = replace(query, keys=("".join(query.keys),), ids=query.ids[:1])
        return await super()._generate(request, query)


@pytest.mark.parametrize("revision", [REVISION, None])
def test_a_reply_with_too_few_answers_is_none(revision: str | None) -> None:
    prompts = [f"prompt {i}" for i in range(40)]
    with Joining(revision=revision) as server, remote(server.url) as engine:
        right(engine, prompts)
        rows = engine.label_logprobs(prompts, ["a", "b"])
        with remote(server.url, prompts_per_request=1) as alone:
            assert (rows.logprobs == alone.label_logprobs(prompts, ["a", "b"]).logprobs).all()
            chats: list[Prompt] = [[{"role": "user", "content": one}] for one in prompts]
            said = [row.text for row in engine.generate(chats, SHORT)]
            assert said == [row.text for row in alone.generate(chats, SHORT)]


@pytest.mark.usefixtures("often")
def test_all_servers_may_be_replaced(tmp_path: Path, servers: list[Injector]) -> None:
    """Between calls, and in one, as when an array is submitted again."""
    files = [ready(tmp_path, "0", servers[0])]
    with remote(str(tmp_path), prompts_per_request=1, max_concurrency=2) as engine:
        right(engine, ["a"])
        files.append(ready(tmp_path, "1", servers[1]))
        files[0].unlink()
        time.sleep(0.2)
        right(engine, ["b"])
        rows = {}
        for index, row in engine.stream([f"p {i}" for i in range(200)], SHORT):
            rows[index] = row
            if len(rows) == 20:
                ready(tmp_path, "2", servers[2])
                files[1].unlink()
    assert [rows[i].text for i in range(200)] == [f"answer to p {i}" for i in range(200)]
    once(servers, [f"p {i}" for i in range(200)])
    assert sum(servers[2].answered.values()) > 20


class Silent(Injector):
    """Accepts connections and answers nothing."""

    async def _serve(self, request: Any) -> Any:
        await asyncio.Event().wait()


@pytest.mark.usefixtures("often")
def test_a_silent_server_delays_nothing(
    tmp_path: Path, servers: list[Injector], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.engines.remote.served.FIRST", 0.5)
    with Silent(revision=REVISION) as silent:
        ready(tmp_path, "0", servers[0])
        ready(tmp_path, "1", silent)
        with remote(str(tmp_path), prompts_per_request=1, max_concurrency=2) as engine:
            for index, _ in enumerate(engine.stream([f"p {i}" for i in range(200)], SHORT)):
                if index == 10:
                    ready(tmp_path, "2", servers[1])
        assert sum(servers[1].answered.values()) > 50
        assert not silent.answered


@pytest.mark.usefixtures("often")
def test_a_readiness_file_that_is_wrong_is_ignored(
    tmp_path: Path, servers: list[Injector], caplog: pytest.LogCaptureFixture
) -> None:
    ready(tmp_path, "0", servers[0])
    wrong = ["http://[fe80::1:8000/v1", "http://hé․.x/v1", None, 5, "nope?key=hush"]
    for number, url in enumerate(wrong):
        (tmp_path / f"wrong-{number}.json").write_text(json.dumps({"url": url}))
    (tmp_path / "list.json").write_text("[1]")
    with remote(str(tmp_path), prompts_per_request=1, max_concurrency=2) as engine:
        for index, _ in enumerate(engine.stream([f"p {i}" for i in range(150)], SHORT)):
            if index == 10:
                ready(tmp_path, "1", servers[1])
    assert sum(servers[1].answered.values()) > 20
    assert caplog.text.count("is ignored") == len(wrong)  # each once
    assert "hush" not in caplog.text


class Swapped(Injector):
    """Its gateway sends requests to another model after a while."""

    def _names(self) -> list[str]:
        return [*super()._names(), "fake"]  # it accepts the name still

    async def _generate(self, request: Any, query: Query) -> Any:
        reply = await super()._generate(request, query)
        if self.requests >= 20:  # two are in flight
            self.model, self._revision = "other", "fedcba987654"
        return reply


@pytest.mark.parametrize("labels", [False, True])
def test_answers_under_another_name_are_checked(servers: list[Injector], labels: bool) -> None:
    prompts = [f"p {i}" for i in range(200)]
    with Swapped(revision=REVISION, latency=0.02) as swapped:
        options: dict[str, Any] = {"prompts_per_request": 1, "max_concurrency": 2}
        with remote([servers[0].url, swapped.url], **options) as engine:
            if labels:
                engine.label_logprobs(prompts, ["a"])
            else:
                right(engine, prompts)
        assert 20 <= swapped.requests < 30
        assert servers[0].requests > 170


def test_a_server_may_answer_under_several_names() -> None:
    """An API behind which several versions answer."""

    class Versions(Injector):
        def _names(self) -> list[str]:
            return ["fake"]

        async def _generate(self, request: Any, query: Query) -> Any:
            self.model = f"fake-{self.requests % 9}"
            return await super()._generate(request, query)

    options: dict[str, Any] = {"prompts_per_request": 1, "attempts": 3}
    with Versions(vllm=False) as server, remote(server.url, **options) as engine:
        right(engine, [f"p {i}" for i in range(100)])
        assert any("answered by 'fake-" in note for note in engine.info.notes)


def test_one_server_under_several_spellings_is_one(servers: list[Injector]) -> None:
    url = servers[0].url
    with remote([url, f"{url}/", url.removesuffix("/v1")], max_concurrency=3) as engine:
        assert engine.info.device == url
    assert urls_of(f"{url}, {url}/") == [url]


def test_servers_with_another_context_are_refused(servers: list[Injector]) -> None:
    with Injector(revision=REVISION, max_model_len=512) as short:
        with pytest.raises(InputError, match=r"context is 512 tokens.*Several servers"):
            remote([servers[0].url, short.url])


def test_an_odd_url_is_not_shown() -> None:
    for url in ("http://me:hu?sh@h/v1", "http://h/v1?key=hu@sh"):
        assert shown_url(url) == "http://…"


@pytest.mark.parametrize(
    "url",
    ["http:/h/v1?key=hush", "me:hush@host:8000/v1", "http://me:hu?hush@h/v1", {"http://h?k=hush"}],
)
def test_no_error_shows_a_secret_of_a_url(url: object) -> None:
    with pytest.raises(InputError) as caught:
        remote(url)
    assert "hush" not in str(caught.value)
