"""The front: real workers with scripted behaviour, behind one real port."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from workbench.errors import EngineError, InputError
from workbench.serving.balancer import LoadBalancer

# It ends a held request when a file appears, and reports a client that left with another.
WORKER = """
import asyncio, os
from pathlib import Path
from aiohttp import web

HERE, NAME = Path(__file__).parent, os.environ["NAME"]

async def released():
    try:
        while not (HERE / "release").exists():
            await asyncio.sleep(0.02)
    except asyncio.CancelledError:
        (HERE / f"left-{NAME}").touch()
        raise

async def hold(request):
    await request.read()
    await released()
    return web.json_response(NAME)

async def stream(request):
    kind = request.query.get("as", "text/event-stream")
    reply = web.StreamResponse(headers={"Content-Type": kind})
    await reply.prepare(request)
    await reply.write(b"data: 1\\n\\n")
    await released()
    await reply.write(b"data: 2\\n\\n")
    return reply

async def echo(request):
    got = {"name": NAME, "pid": os.getpid(), "method": request.method, "path": request.raw_path}
    got |= {"headers": dict(request.headers), "body": (await request.read()).hex()}
    headers = {"X-Mine": NAME, "Connection": "X-Hop", "X-Hop": "1"}
    return web.json_response(got, status=418, headers=headers)

async def health(request):
    sick = (HERE / f"sick-{NAME}").exists()
    return web.json_response({"status": "ok", "live": 1}, status=503 if sick else 200)

async def stats(request):
    if request.headers.get("Authorization") != "Bearer key":
        return web.json_response({"error": "no key"}, status=401)
    return web.json_response({"name": NAME})

async def main():
    app = web.Application()
    app.router.add_get("/health", health)
    app.router.add_get("/batch/stats", stats)
    app.router.add_get("/v1/stream", stream)
    app.router.add_post("/v1/hold", hold)
    app.router.add_route("*", "/{path:.*}", echo)
    runner = web.AppRunner(app, handler_cancellation=True, auto_decompress=False)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", flush=True)
    await asyncio.Event().wait()

if (HERE / f"broken-{NAME}").exists():
    raise SystemExit("no such weights")
asyncio.run(main())
"""
FRONT = """
import sys
from pathlib import Path
from workbench.serving import balancer

here = Path(sys.argv[1])
balancer.RESTART, balancer.DRAIN = map(float, sys.argv[2:])
command = [sys.executable, str(here / "worker.py")]
environments = [{"NAME": name} for name in "ab"]
balancer.LoadBalancer(command, environments, folder=here / "logs").run()
"""


@dataclass(frozen=True)
class Running:
    folder: Path
    process: subprocess.Popen[str]
    port: int

    def open(self, method: str, path: str, body: bytes = b"", **headers: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body, headers)
        return connection

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
        with closing(self.open(method, path, body, **headers)) as connection:
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def loads(self) -> list[int]:
        return [worker["in_flight"] for worker in self.ask("GET", "/health")[1]["workers"]]

    def worker(self, name: str) -> psutil.Process:
        """The process of that name, found by asking until it is its turn."""
        got = [self.ask("GET", "/who")[1] for _ in "ab"]
        return psutil.Process(next(one["pid"] for one in got if one["name"] == name))


@contextmanager
def running(folder: Path, restart: float = 60, drain: float = 30) -> Iterator[Running]:
    (folder / "worker.py").write_text(WORKER)
    line = [sys.executable, "-c", FRONT, str(folder), str(restart), str(drain)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().split(":")[2].partition("/")[0])
            yield Running(folder, process, port)
        finally:
            (folder / "release").touch()
            process.terminate()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """For tests that leave the workers as they were."""
    with running(tmp_path_factory.mktemp("front")) as front:
        yield front


@pytest.fixture
def front(shared: Running) -> Running:
    for path in [*shared.folder.glob("left-*"), shared.folder / "release"]:
        path.unlink(missing_ok=True)
    until(lambda: shared.loads() == [0, 0])
    return shared


def until(holds: Callable[[], bool]) -> None:
    patience = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < patience
        time.sleep(0.02)


def test_a_request_and_its_answer_pass_unchanged(front: Running) -> None:
    body = bytes(range(256))
    with closing(
        front.open("PATCH", "/a%20b//c?x=1%2F2&x=%20", body, TE="trailers", Accept="x/y")
    ) as connection:
        answer = connection.getresponse()
        got = json.loads(answer.read())
    assert answer.status == 418
    assert (answer.headers["X-Mine"], answer.headers["X-Hop"]) == (got["name"], None)
    assert got["method"] == "PATCH"
    assert got["path"] == "/a%20b//c?x=1%2F2&x=%20"
    assert got["body"] == body.hex()
    assert got["headers"]["Accept"] == "x/y"
    assert not {"TE", "Content-Type", "User-Agent"} & set(got["headers"])
    packed = front.ask("POST", "/v1/x", b"not really gzip", **{"Content-Encoding": "gzip"})[1]
    assert bytes.fromhex(packed["body"]) == b"not really gzip"


def test_a_path_cannot_lead_to_another_host(front: Running) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.setblocking(False)
        elsewhere = f"127.0.0.1:{trap.getsockname()[1]}"
        for target in (f"@{elsewhere}/", f"http://{elsewhere}/", f"//{elsewhere}/"):
            with socket.create_connection(("127.0.0.1", front.port)) as connection:
                text = f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
                connection.sendall(text.encode())
                assert connection.recv(12)[8:10] == b" 4"
        with pytest.raises(BlockingIOError):
            trap.accept()


def test_ties_go_in_turn(front: Running) -> None:
    names = [front.ask("GET", "/v1/models")[1]["name"] for _ in range(6)]
    assert names in (list("ababab"), list("bababa"))


def test_the_least_loaded_is_chosen(front: Running) -> None:
    with ThreadPoolExecutor() as pool:
        held = [pool.submit(front.ask, "POST", "/v1/hold") for _ in range(5)]
        until(lambda: sum(front.loads()) == 5)
        loads = front.loads()
        assert sorted(loads) == [2, 3]
        free = "ab"[loads.index(2)]
        assert [front.ask("GET", "/x")[1]["name"] for _ in range(3)] == [free] * 3
        (front.folder / "release").touch()
        assert sorted(one.result()[1] for one in held).count(free) == 2
    assert front.loads() == [0, 0]


def test_a_stream_passes_as_it_comes(front: Running) -> None:
    with closing(front.open("GET", "/v1/stream")) as connection:
        answer = connection.getresponse()
        assert answer.read1() == b"data: 1\n\n"  # the worker waits for us now
        (front.folder / "release").touch()
        assert answer.read() == b"data: 2\n\n"


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/hold"), ("GET", "/v1/stream")])
def test_a_client_that_leaves_is_gone_at_the_worker(front: Running, method: str, path: str) -> None:
    with closing(front.open(method, path)):
        until(lambda: sum(front.loads()) == 1)
        name = "ab"[front.loads().index(1)]
    until((front.folder / f"left-{name}").exists)
    until(lambda: front.loads() == [0, 0])


def test_health_is_that_of_the_best_worker(front: Running) -> None:
    status, got = front.ask("GET", "/health")
    assert (status, got["status"], len(got["workers"])) == (200, "ok", 2)
    assert got["workers"][0]["own"] == {"status": "ok", "live": 1}
    files = [front.folder / "sick-a", front.folder / "sick-b"]
    try:
        files[0].touch()
        status, got = front.ask("GET", "/health")
        assert (status, [worker["healthy"] for worker in got["workers"]]) == (200, [False, True])
        files[1].touch()
        status, got = front.ask("GET", "/health")
        assert (status, got["status"]) == (503, "unavailable")
    finally:
        for file in files:
            file.unlink(missing_ok=True)


def test_stats_are_those_of_each_worker(front: Running) -> None:
    status, got = front.ask("GET", "/batch/stats", Authorization="Bearer key")
    assert status == 200
    assert got == {"workers": [{"name": "a"}, {"name": "b"}], "in_flight": [0, 0]}
    assert front.ask("GET", "/batch/stats") == (401, {"error": "no key"})


def test_the_front_asks_for_the_key_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its workers here ask for none, but for one path: what passes has the key."""
    monkeypatch.setenv("WORKBENCH_API_KEY", "key")
    with running(tmp_path) as front:
        for path in ("/v1/models", "/echo", "/batch/stats", "/", "/docs", "//health"):
            assert front.ask("GET", path)[0] == 401
            assert front.ask("GET", path, Authorization="Bearer kez")[0] == 401
        assert front.ask("GET", "/health")[0] == 200
        assert front.ask("GET", "/echo", Authorization="Bearer key")[0] == 418
        assert front.ask("GET", "/batch/stats", Authorization="Bearer key")[0] == 200


@pytest.mark.parametrize(
    ("method", "target", "size", "status"),
    [("POST", "/v1/x", 2**26 + 1, 413), ("OPTIONS", "*", 0, 404)],
)
def test_its_own_refusals_are_errors_of_openais_form(
    front: Running, method: str, target: str, size: int, status: int
) -> None:
    found, got = front.ask(method, target, bytes(size))
    assert found == status
    assert set(got["error"]) == {"message", "type", "param", "code"}
    assert got["error"]["type"] == "invalid_request_error"
    assert got["error"]["message"].startswith(f"{method} {target}: ")


def test_a_dead_worker_costs_its_own_requests_only(tmp_path: Path) -> None:
    with running(tmp_path) as front, ThreadPoolExecutor() as pool:
        victim = front.worker("a")
        held = [pool.submit(front.ask, "POST", "/v1/hold") for _ in range(2)]
        until(lambda: front.loads() == [1, 1])
        streams = [front.open("GET", "/v1/stream").getresponse() for _ in range(2)]
        plain = [front.open("GET", "/v1/stream?as=text/plain").getresponse() for _ in range(2)]
        assert [one.read1() for one in streams + plain] == [b"data: 1\n\n"] * 4
        victim.kill()
        until(lambda: any(one.done() for one in held))
        status, got = next(one.result() for one in held if one.done())
        assert status == 502
        assert set(got["error"]) == {"message", "type", "param", "code"}
        assert {front.ask("GET", "/x")[1]["name"] for _ in range(4)} == {"b"}
        status, got = front.ask("GET", "/batch/stats", Authorization="Bearer key")
        assert (status, got["workers"]) == (200, [None, {"name": "b"}])

        (tmp_path / "release").touch()
        assert sorted(one.result()[0] for one in held) == [200, 502]
        ends = sorted(one.read() for one in streams)
        assert ends[0] == b"data: 2\n\n"
        assert json.loads(ends[1].removeprefix(b"data: "))["error"]["code"] == "worker_died"
        # This one cannot report the error, and does not look complete.
        assert sorted(map(rest, plain)) == [b"", b"data: 2\n\n"]

        front.worker("b").kill()
        with closing(front.open("GET", "/x")) as connection:
            answer = connection.getresponse()
            assert (answer.status, answer.headers["Retry-After"]) == (503, "60")
            assert json.loads(answer.read())["error"]["code"] == "no_worker"
        assert front.ask("GET", "/health")[0] == 503
        status, got = front.ask("GET", "/batch/stats")
        assert (status, got) == (503, {"workers": [None, None], "in_flight": [0, 0]})


def rest(answer: http.client.HTTPResponse) -> bytes:
    """What is left of an answer; nothing if it is broken off."""
    with suppress(http.client.IncompleteRead):
        whole = answer.read()
        assert whole
        return whole
    return b""


def test_a_dead_worker_is_started_again_but_not_at_once(tmp_path: Path) -> None:
    with running(tmp_path, restart=2) as front:
        victim = front.worker("a")
        born = victim.create_time()
        (tmp_path / "broken-a").touch()  # the first attempt fails
        victim.kill()
        log = tmp_path / "logs" / "worker-0.log"
        until(lambda: "no such weights" in log.read_text())
        (tmp_path / "broken-a").unlink()
        until(lambda: {front.ask("GET", "/x")[1]["name"] for _ in range(2)} == {"a", "b"})
        assert front.worker("a").create_time() - born > 3.9


def test_the_end_waits_for_running_requests(tmp_path: Path) -> None:
    with running(tmp_path) as front, ThreadPoolExecutor() as pool:
        workers = [front.worker(name) for name in "ab"]
        held = pool.submit(front.ask, "POST", "/v1/hold")
        until(lambda: sum(front.loads()) == 1)
        front.process.terminate()
        until(lambda: refused(front.port))
        front.process.terminate()  # again is no reason to hurry
        assert not held.done()
        (tmp_path / "release").touch()
        assert held.result()[0] == 200
        assert front.process.wait(20) == 0
        assert not any(worker.is_running() for worker in workers)


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize("way", ["patience ends", "Ctrl-C"])
def test_the_end_does_not_wait_for_ever(tmp_path: Path, way: str) -> None:
    drain = 0.5 if way == "patience ends" else 60
    with running(tmp_path, drain=drain) as front, ThreadPoolExecutor() as pool:
        workers = [front.worker(name) for name in "ab"]
        held = pool.submit(front.ask, "POST", "/v1/hold")
        until(lambda: sum(front.loads()) == 1)
        front.process.terminate()
        until(lambda: refused(front.port))
        if way == "Ctrl-C":
            front.process.send_signal(signal.SIGINT)
        assert front.process.wait(20) == 0
        assert held.exception() or held.result()[0] == 502
        assert not any(worker.is_running() for worker in workers)


def test_nothing_survives_a_killed_front(tmp_path: Path) -> None:
    with running(tmp_path) as front:
        workers = [front.worker(name) for name in "ab"]
        front.process.kill()
        psutil.wait_procs(workers, timeout=20)
        assert not any(worker.is_running() for worker in workers)


GOOD = "print('http://127.0.0.1:1/v1', flush=True); import time; time.sleep(600)"


def make(folder: Path, program: str, **options: Any) -> LoadBalancer:
    line = [sys.executable, "-c", "import os; exec(os.environ['PROGRAM'])"]
    environments = [{"PROGRAM": text} for text in (GOOD, program)]
    return LoadBalancer(line, environments, folder=folder, **options)


async def enter(front: LoadBalancer) -> None:
    async with front.serving():
        pass


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("raise SystemExit('no such weights')", r"ended with code 1 .*(?s:.)*no such weights"),
        ("import time; time.sleep(600)", r"did not answer within timeout=0\.5 s"),
    ],
)
def test_a_worker_that_does_not_come_up(program: str, message: str, tmp_path: Path) -> None:
    before = children()
    timeout = 0.5 if "sleep" in program else 60
    with pytest.raises(EngineError, match=message):
        asyncio.run(enter(make(tmp_path, program, timeout=timeout)))
    assert children() == before


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    before = children()
    with pytest.raises(EngineError, match="nowhere"):
        asyncio.run(enter(LoadBalancer(["/nowhere/at-all"], [{}], folder=tmp_path)))
    assert children() == before


def test_a_signal_while_workers_load(tmp_path: Path) -> None:
    loading = "import time; open('loading', 'w').close(); time.sleep(600)"
    (tmp_path / "worker.py").write_text(loading)
    line = [sys.executable, "-c", FRONT, str(tmp_path), "60", "30"]
    with subprocess.Popen(line, cwd=tmp_path) as process:
        until((tmp_path / "loading").exists)
        workers = psutil.Process(process.pid).children()
        process.terminate()
        assert process.wait(20) == 0
        assert workers
        assert not any(worker.is_running() for worker in workers)


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pass one per worker"):
        LoadBalancer(["true"], [], folder=tmp_path)
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(InputError, match="cannot be used"),
    ):
        LoadBalancer(["true"], [{}], folder=tmp_path, port=taken.getsockname()[1])


def test_a_port_taken_while_workers_load(tmp_path: Path) -> None:
    before = children()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    front = make(tmp_path, GOOD, port=port)
    assert front.url == f"http://127.0.0.1:{port}/v1"
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(InputError, match="cannot be used"),
    ):
        asyncio.run(enter(front))
    assert children() == before
