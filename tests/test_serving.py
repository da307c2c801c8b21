"""The server: one real one for the module, its end, and what is refused before it starts."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from workbench.engines.source import Source
from workbench.engines.vllm import unavailable
from workbench.errors import EngineError, InputError
from workbench.serving import PRESETS, Server, serve
from workbench.serving.presets import arguments, command, environment, refused_option, served
from workbench.serving.process import ServerProcess, open_log
from workbench.serving.server import PortTakenError, _explain
from workbench.tiny import MODEL

KEY = "a-key-for-tests"  # the server fixture sets it
pytestmark = pytest.mark.skipif(unavailable() is not None, reason="needs vLLM")


def ask(server: Server, path: str, body: dict[str, Any] | None = None, key: str = KEY) -> Any:
    request = urllib.request.Request(
        server.url + path,
        json.dumps(body).encode() if body else None,
        {"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def group(pid: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def test_it_reports_its_names_and_settings(server: Server) -> None:
    assert server.alive
    models = ask(server, "/models")["data"]
    revision = f"{Source.find(None).weights()[:12]}-float32"
    assert [m["id"] for m in models] == ["workbench-tiny", f"workbench-tiny@{revision}"]
    assert models[0]["max_model_len"] == 2048


def test_it_answers_a_batch(server: Server) -> None:
    prompts = [f"{a}+{a}=" for a in range(20, 60)]
    body = {"model": server.model, "prompt": prompts, "max_tokens": 4, "temperature": 1, "seed": 3}
    first, second = (ask(server, "/completions", body)["choices"] for _ in range(2))
    assert len(first) == len(prompts)
    assert [one["text"] for one in first] == [one["text"] for one in second]


def test_the_prefix_cache_is_on_and_counted(server: Server) -> None:
    body = {"model": server.model, "prompt": "12+34=46\n" * 30, "max_tokens": 1}
    ask(server, "/completions", body)
    details = ask(server, "/completions", body)["usage"]["prompt_tokens_details"]
    assert details["cached_tokens"] >= 32


def test_the_key_is_asked_for_and_nowhere_shown(server: Server) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        ask(server, "/models", key="another")
    said = [repr(server), str(vars(server)), server.log.read_text()]
    said += [" ".join(process.cmdline()) for process in group(server.pid)]
    assert len(said) > 4  # the server is more than one process
    assert all(KEY not in text for text in said)


def test_every_path_but_health_wants_the_key(server: Server) -> None:
    """Also those that vLLM itself leaves open, and with unexpected methods."""
    root = server.url.removesuffix("/v1")
    key = {"Authorization": f"Bearer {KEY}"}
    described = httpx.get(f"{root}/openapi.json", headers=key, timeout=60).json()["paths"]
    paths = {*described, "/docs", "/redoc", "/openapi.json", "/metrics", "/", "//health", "/ping"}
    paths |= {"/health/", "/health/../v1/models", "/Health", "/nothing", "/invocations"}
    assert {"/v1/models", "/tokenize", "/v1/chat/completions/batch"} <= paths
    with httpx.Client(trust_env=False, timeout=20) as client:
        for path in sorted(paths - {"/health"}):
            for method in ("GET", "POST", "OPTIONS", "HEAD"):
                for sent in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}):
                    url = httpx.URL(root).copy_with(raw_path=path.encode())
                    asked = client.request(method, url, headers=sent, content=b"{}")
                    assert asked.status_code == 401, (method, path)
        assert client.get(f"{root}/health").status_code == 200


def test_logs_are_the_owners_alone(server: Server, tmp_path: Path) -> None:
    assert server.log.stat().st_mode & 0o777 == 0o600
    before = os.umask(0)
    try:
        open_log(tmp_path / "log").close()
    finally:
        os.umask(before)
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_its_log_is_in_the_run_folder(server: Server) -> None:
    assert server.log.parent.name == "serve"
    assert server.log.parent.parent.name.startswith("serve")
    assert "Application startup complete" in server.log.read_text()


def test_a_taken_port(server: Server) -> None:
    port = int(server.url.split(":")[2].partition("/")[0])
    with pytest.raises(InputError, match=f"port={port} .* cannot be used"):
        serve(port=port)


def test_it_ends_with_all_its_processes(server: Server) -> None:
    """The last test with the server."""
    guards = [p for p in psutil.Process().children() if "workbench-guard" in p.cmdline()]
    assert guards
    server.close()
    assert not server.alive
    assert not group(server.pid)
    assert not any(guard.is_running() for guard in guards)
    server.close()
    server.kill()


def test_a_wrong_option_is_named_with_the_nearest(wrong_start: tuple[Future[Server], Path]) -> None:
    started, log = wrong_start
    with pytest.raises(InputError, match=r"'max_num_seqz'.*did you mean 'max_num_seqs'"):
        started.result()
    assert "max-num-seqz" in log.read_text()


CHILD = """
import subprocess, sys
from workbench.serving import server
server._answers = lambda *_: True
server._listens = lambda *_: True
server.command = lambda *_: [sys.executable, "-c", {program!r}]
from workbench.serving import serve
started = serve(log={log!r})
print(started.pid, flush=True)
{then}
"""
SLEEPER = "import subprocess, sys; subprocess.run(['sleep', '600'])"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPER


@pytest.mark.parametrize(
    ("program", "then"),
    [
        (SLEEPER, "pass"),
        (SLEEPER, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
        (STUBBORN, "started.kill(); print(started.alive); import time; time.sleep(60)"),
    ],
    ids=["without close", "killed itself", "kills the server"],
)
def test_nothing_survives_its_parent(program: str, then: str, tmp_path: Path) -> None:
    text = CHILD.format(program=program, then=then, log=str(tmp_path / "log"))
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        if "kill()" in then:
            assert parent.stdout.readline() == b"False\n"
            assert not group(pid)
            parent.kill()
    patience = time.monotonic() + 8
    while group(pid) and time.monotonic() < patience:
        time.sleep(0.05)
    assert not group(pid)


def test_an_interrupt_while_waiting_ends_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[int] = []

    def interrupt(host: str, port: int) -> bool:
        seen.extend(p.pid for p in psutil.Process().children() if "sleep" in str(p.cmdline()))
        raise KeyboardInterrupt

    monkeypatch.setattr("workbench.serving.server._answers", interrupt)
    monkeypatch.setattr(
        "workbench.serving.server.command", lambda *_: [sys.executable, "-c", SLEEPER]
    )
    with pytest.raises(KeyboardInterrupt):
        serve(log=tmp_path / "log")
    assert seen
    assert not any(group(pid) for pid in seen)


def test_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        "workbench.serving.server.command", lambda *_: [sys.executable, "-c", SLEEPER]
    )
    with pytest.raises(EngineError, match=r"timeout=0\.5 s"):
        serve(log=tmp_path / "log", timeout=0.5)


def test_a_port_taken_meanwhile_is_tried_once_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = "import sys; sys.exit('OSError: [Errno 98] Address already in use')"
    ports: list[int] = []

    def line(source: object, host: str, port: int, options: object) -> list[str]:
        ports.append(port)
        return [sys.executable, "-c", program]

    monkeypatch.setattr("workbench.serving.server.command", line)
    with pytest.raises(PortTakenError, match="choose another port"):
        serve(log=tmp_path / "log")
    assert len(ports) == 2


def test_another_server_on_the_port_is_not_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("workbench.serving.server._answers", lambda *_: True)
    monkeypatch.setattr(
        "workbench.serving.server.command", lambda *_: [sys.executable, "-c", SLEEPER]
    )
    with pytest.raises(EngineError, match="did not answer"):
        serve(log=tmp_path / "log", timeout=0.5)


@pytest.mark.parametrize("name", ["9b", "", "8B"])
def test_an_unknown_preset(name: str) -> None:
    with pytest.raises(InputError, match="8b, 70b, 405b"):
        serve(preset=name)


def test_a_preset_for_more_gpus_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.serving.presets._count_gpus", lambda: 2)
    with pytest.raises(InputError, match=r"'70b' needs 4 GPUs.*has 2"):
        serve(preset="70b")
    with pytest.raises(InputError, match="needs 8 GPUs"):
        serve(preset="405b", tensor_parallel_size=4, pipeline_parallel_size=2)


def test_gpus_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: Card'\necho '  MIG 1g'\necho 'GPU 1: Card'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(InputError, match="has 2"):
        serve(preset="405b")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(InputError, match="has 1"):
        serve(preset="405b")


def test_the_callers_options_win_over_the_preset() -> None:
    source = Source.find(None)
    settings = arguments(source, PRESETS["70b"], {"max-num-seqs": 7, "block_size": None})
    line = command(source, "127.0.0.1", 8000, settings)
    assert "--max-num-seqs=7" in line
    assert "--tensor-parallel-size=4" in line
    assert "--enable-prefix-caching" in line
    assert not any("block-size" in word or "executor" in word for word in line)
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["8b"].max_num_seqs = 1  # type: ignore[misc]


def test_options_become_flags() -> None:
    source = Source.find(None)
    options = {"a": True, "b_c": False, "d": [1, "x"], "e": {"k": 1}, "f": -1, "g": None}
    line = command(source, "127.0.0.1", 8000, options)
    at = line.index("--enable-prefix-caching")
    assert line[at + 1 :] == ["--a", "--no-b-c", "--d", "1", "x", "--e", '{"k": 1}', "--f=-1"]


@pytest.mark.parametrize("name", ["api_key", "api-key", "enable_prefix_caching", "Wrong", "a b"])
def test_options_that_are_not_the_callers(name: str) -> None:
    options: dict[str, Any] = {name: "secret"}
    with pytest.raises(InputError, match="option") as raised:
        serve(**options)
    assert "secret" not in str(raised.value)


def test_a_server_reports_weights_and_what_changes_an_answer(tmp_path: Path) -> None:
    folder = Source.find(str(MODEL))
    plain = served(folder, {"max_num_seqs": 8, "disable_uvicorn_access_log": True, "seed": None})
    assert plain == {"name": "model", "weights": folder.weights(), "options": {}}
    assert served(Source.find("some/model"), {})["weights"] is None  # its commit identifies them
    template = tmp_path / "chat.jinja"
    template.write_text("one")
    first = served(folder, {"quantization": "fp8", "chat_template": str(template)})["options"]
    template.write_text("two")
    second = served(folder, {"quantization": "fp8", "chat_template": str(template)})["options"]
    assert first.keys() == second.keys() == {"chat_template", "quantization"}
    assert first["quantization"] == second["quantization"]
    assert first["chat_template"] != second["chat_template"]  # a path is no identity
    assert "WORKBENCH_SERVED" in environment({}, plain)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"port": 0}, "port=0"),
        ({"port": 70000}, "port=70000"),
        ({"host": "256.1.1.1"}, "256.1.1.1"),
        ({"timeout": 0}, "timeout=0"),
        ({"model": "./nowhere"}, "nowhere"),
        ({"log": "/proc/none/log"}, "/proc/none/log"),
    ],
)
def test_wrong_arguments(call: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        serve(**call)


def test_an_open_host_without_a_key_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("WORKBENCH_API_KEY", "VLLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with caplog.at_level(logging.WARNING, "workbench"), pytest.raises(InputError, match="log="):
        serve(host="0.0.0.0", log="/proc/none/log")
    assert "anyone" in caplog.text
    caplog.clear()
    monkeypatch.setenv("WORKBENCH_API_KEY", KEY)
    with pytest.raises(InputError, match="log="):
        serve(host="0.0.0.0", log="/proc/none/log")
    assert not caplog.text


USAGE = "usage: api_server.py [--dtype X]\n       [--disable-log-stats]\napi_server.py: error: "


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("unrecognized arguments: --dtyp=x --y", r"unknown option 'dtyp'.*'dtype'"),
        ("unrecognized arguments: --no-disable-log-stats", "'disable_log_stats' cannot be False"),
        ("argument --dtype: invalid choice: 'y' (choose from 'x')", "option 'dtype' is wrong"),
        ("argument --max-x/--no-max-x: expected one argument", "option 'max_x' is wrong: exp"),
    ],
)
def test_what_the_command_line_said(said: str, message: str) -> None:
    error = refused_option(USAGE + said)
    assert isinstance(error, InputError)
    with pytest.raises(InputError, match=message):
        raise error


@pytest.mark.parametrize(
    ("said", "code", "remedy"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory.", 1, "memory ran out"),
        ("nothing special", -9, "memory ran out"),
        ("OSError: We couldn't connect to 'https://huggingface.co'", 1, "model was not found"),
        ("ValidationError: 1 validation error for SchedulerConfig", 1, "wrong value"),
        ("ValueError: something else", 1, "see the whole log"),
    ],
)
def test_why_it_ended(said: str, code: int, remedy: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    prefix = "(EngineCore pid=7) ERROR 11-21 20:00:41 [core.py:114] "
    trace = 'Traceback (most recent call last):\n  File "x.py", line 1\n    x()\n'
    old = "address already in use\n"
    warning = prefix.replace("ERROR", "WARNING") + "Triton is not installed\n"
    log.write_text(old)
    text = warning + prefix + said + "\n" + trace + said + "\n"
    process = ServerProcess([sys.executable, "-c", f"print({text!r}, end='')"], os.environ, log)
    assert process.exit_code(30) == 0
    process.finish()
    error = _explain(process.output(), code, log)
    assert isinstance(error, InputError if "wrong value" in remedy else EngineError)
    assert remedy in str(error)
    assert str(error).endswith(f"\n{said}")
    assert str(error).count("\n") == 1


def test_a_free_port_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.serving.access import free_port

    port = free_port("127.0.0.1")
    assert free_port("127.0.0.1", port) == port
    with socket.create_server(("127.0.0.1", port)), pytest.raises(InputError, match="in use"):
        free_port("127.0.0.1", port)
