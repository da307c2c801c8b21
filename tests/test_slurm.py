"""The script for a cluster: run by a real bash, with a real server, without Slurm."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import typer
from typer.testing import CliRunner

from workbench.cli.slurm import slurm
from workbench.errors import EngineError, EngineUnavailableError, InputError
from workbench.serving.slurm import SlurmJob, command, script, server_script, submit

KEY = "a-key-for-tests"
RIGHT: dict[str, Any] = {"account": "lab", "gpus": 1, "mem": "1G", "time": "10"}
JOB = SlurmJob("lab", 2, "64G", "1-02:03:04", name="test")
parent = typer.Typer()
parent.add_typer(slurm, name="slurm")

# Healthy once a file is there; ends with code 3 if another one is.
SERVER = """
import json, os, signal, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

here = Path(__file__).parent
if (here / "broken").exists():
    sys.exit(3)
at = sys.argv.index("--host")
host, port = sys.argv[at + 1], int(sys.argv[at + 3])
seen = {"arguments": sys.argv[1:at], "host": host, "port": port, "pid": os.getpid()}
seen |= {"keyed": os.environ.get("WORKBENCH_API_KEY") == "a-key-for-tests"}
seen |= {"mark": os.environ.get("MARK")}

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        with (here / "asked").open("a") as file:
            file.write(self.path)
        self.send_response(200 if (here / "go").exists() else 503)
        self.end_headers()
        if self.path == "/end":
            os._exit(3)

    def log_message(self, *args):
        pass

server = ThreadingHTTPServer((host, port), Handler)
(here / "seen.part").write_text(json.dumps(seen))
(here / "seen.part").rename(here / "seen")
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever()
"""


def until(holds: Callable[[], bool]) -> None:
    patience = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < patience
        time.sleep(0.02)


def write(folder: Path, *arguments: str, job: SlurmJob = JOB, **options: Any) -> str:
    (folder / "server.py").write_text(SERVER)
    line = [sys.executable, str(folder / "server.py"), *arguments]
    given: dict[str, Any] = {"model": "some/model", "folder": folder} | options
    return server_script(job, line, **given)


@contextmanager
def started(folder: Path, text: str, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    path = folder / "job.sh"
    path.write_text(text)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    environment |= {"SLURM_JOB_ID": "77", "SLURMD_NODENAME": "node7", "USER": "me"}
    environment |= {"SLURM_SUBMIT_HOST": "login1"} | variables
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", str(path)], cwd=folder, env=environment, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


def ready(folder: Path) -> Path:
    return folder / "test-77.json"


def read(path: Path) -> Any:
    until(path.exists)
    return json.loads(path.read_text())


def tool(folder: Path, name: str, text: str) -> dict[str, str]:
    """A program of that name, and the PATH that finds it first."""
    bin_folder = folder / "bin"
    bin_folder.mkdir(exist_ok=True)
    (bin_folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (bin_folder / name).chmod(0o755)
    return {"PATH": f"{bin_folder}:{os.environ['PATH']}"}


def test_the_readiness_file_is_there_while_the_server_answers(tmp_path: Path) -> None:
    with started(tmp_path, write(tmp_path)) as job:
        seen = read(tmp_path / "seen")
        until((tmp_path / "asked").exists)
        asked = len((tmp_path / "asked").read_text())
        until(lambda: len((tmp_path / "asked").read_text()) > asked)  # the first answer was read
        assert not list(tmp_path.glob("*.json*"))
        (tmp_path / "go").touch()
        url = f"http://127.0.0.1:{seen['port']}/v1"
        assert read(ready(tmp_path)) == {
            "host": "node7", "port": seen["port"], "url": url, "job_id": "77", "model": "some/model"
        }  # fmt: skip
        assert seen["host"] == "127.0.0.1"
        until(lambda: "WORKBENCH_BASE_URL" in (tmp_path / "log").read_text())
        port = seen["port"]
        said = (tmp_path / "log").read_text()
        assert f"ssh -N -J me@login1 -L {port}:127.0.0.1:{port} node7\n" in said
        assert f"export WORKBENCH_BASE_URL=http://127.0.0.1:{port}/v1\n" in said
        job.terminate()
        assert job.wait(20) == 0
    assert not list(tmp_path.glob("*.json*"))
    assert not psutil.pid_exists(seen["pid"])


def test_a_server_that_never_answers_leaves_no_file(tmp_path: Path) -> None:
    with started(tmp_path, write(tmp_path)) as job:
        until((tmp_path / "asked").exists)
        job.terminate()
        assert job.wait(20) == 0
    assert not list(tmp_path.glob("*.json*"))
    assert "ready" not in (tmp_path / "log").read_text()


def test_a_server_that_ends_ends_the_job(tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    with started(tmp_path, write(tmp_path)) as job:
        port = read(ready(tmp_path))["port"]
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET /end HTTP/1.0\r\n\r\n")
            assert job.wait(20) == 3
    assert not ready(tmp_path).exists()
    (tmp_path / "broken").touch()
    with started(tmp_path, write(tmp_path)) as job:
        assert job.wait(20) == 3
    assert not ready(tmp_path).exists()


def test_a_given_port(tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = write(tmp_path, port=port)
        with started(tmp_path, text) as job:
            assert job.wait(20) == 1
        assert f"port {port} of node7 is taken" in (tmp_path / "log").read_text()
        assert not (tmp_path / "seen").exists()
    with started(tmp_path, text):
        assert read(ready(tmp_path))["port"] == port


HOSTILE = [
    "a b", "it's", '"q"', "$(touch pwned)", "`touch pwned`", "$HOME", "*", "\\", "!x", "~", "#", "",
    "; touch pwned", "é", "%s", "--flag", "')", "${serve[@]}",
]  # fmt: skip


def test_arguments_arrive_as_they_were(tmp_path: Path) -> None:
    model = 'it\'s "$(touch pwned)" é\\'
    (tmp_path / "go").touch()
    with started(tmp_path, write(tmp_path, *HOSTILE, model=model)):
        assert read(tmp_path / "seen")["arguments"] == HOSTILE
        assert read(ready(tmp_path))["model"] == model
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("source", ["file", "environment"])
def test_the_key_opens_the_port_and_is_nowhere_shown(tmp_path: Path, source: str) -> None:
    (tmp_path / "go").touch()
    secret = tmp_path / "secret key"
    variables = {"WORKBENCH_API_KEY": KEY} if source == "environment" else {}
    if source == "file":
        secret.write_text(KEY + "\n")
        secret.chmod(0o600)
    text = write(tmp_path, key_file=None if variables else secret)
    with started(tmp_path, text, **variables):
        seen = read(tmp_path / "seen")
        assert (seen["keyed"], seen["host"]) == (True, "0.0.0.0")
        assert read(ready(tmp_path))["url"] == f"http://node7:{seen['port']}/v1"
        until(lambda: "WORKBENCH_BASE_URL" in (tmp_path / "log").read_text())
        tunnel = f"ssh -N -L {seen['port']}:node7:{seen['port']} me@login1\n"
        assert tunnel in (tmp_path / "log").read_text()
        files = {path for path in tmp_path.iterdir() if path.is_file()} - {secret}
        assert {"log", "job.sh", "test-77.json"} <= {path.name for path in files}
        shown = [path.read_text() for path in files if path.name != "server.py"]
        shown += [" ".join(psutil.Process(seen["pid"]).cmdline())]
        assert not any(KEY in one for one in shown)


@pytest.mark.parametrize(
    ("mode", "content", "message"),
    [(0o644, KEY, "chmod 600"), (0o600, "\n", "is empty"), (None, "", "cannot be read")],
)
def test_a_key_file_that_will_not_do(
    tmp_path: Path, mode: int | None, content: str, message: str
) -> None:
    secret = tmp_path / "secret"
    if mode is not None:
        secret.write_text(content)
        secret.chmod(mode)
    with started(tmp_path, write(tmp_path, key_file=secret)) as job:
        assert job.wait(20) == 1
    said = (tmp_path / "log").read_text()
    assert message in said
    assert KEY not in said
    assert not (tmp_path / "seen").exists()


def test_it_asks_for_slurm(tmp_path: Path) -> None:
    with started(tmp_path, write(tmp_path), SLURM_JOB_ID="") as job:
        assert job.wait(20) != 0
    assert "submit this script with sbatch" in (tmp_path / "log").read_text()


def test_a_virtual_environment(tmp_path: Path) -> None:
    (tmp_path / "my env" / "bin").mkdir(parents=True)
    activate = 'MARK="$NOT_SET"venv; export MARK'  # as real ones do
    (tmp_path / "my env" / "bin" / "activate").write_text(activate)
    job = SlurmJob("lab", 1, "1G", "5", environment=str(tmp_path / "my env"), name="test")
    with started(tmp_path, write(tmp_path, job=job)):
        assert read(tmp_path / "seen")["mark"] == "venv"


def test_a_conda_environment(tmp_path: Path) -> None:
    hook = "echo 'conda() { export MARK=\"$NOT_SET$*\"; }'"
    variables = tool(tmp_path, "conda", hook)
    job = SlurmJob("lab", 1, "1G", "5", environment="my env", name="test")
    with started(tmp_path, write(tmp_path, job=job), CONDA_EXE="conda", **variables):
        assert read(tmp_path / "seen")["mark"] == "activate my env"


@pytest.mark.parametrize("image", ["an#image:1 x", "/images/a b.sif"])
def test_a_container(tmp_path: Path, image: str) -> None:
    note = 'printf "%s\\n" "$@" > given; '
    variables = tool(
        tmp_path, "srun", note + 'while [[ $1 == --* ]]; do shift; done; exec "$@"'
    ) | tool(tmp_path, "apptainer", note + 'until [[ $1 == *.sif ]]; do shift; done; exec "${@:2}"')
    job = SlurmJob("lab", 1, "1G", "5", cpus=3, container=image, name="test")
    with started(tmp_path, write(tmp_path, "x y", job=job, model="/a b/model"), **variables):
        assert read(tmp_path / "seen")["arguments"] == ["x y"]
    given = (tmp_path / "given").read_text().splitlines()
    if image.endswith(".sif"):
        assert given[:5] == ["exec", "--nv", "--bind", "/a b/model:/a b/model", image]
    else:
        assert {f"--container-image={image}", "--cpus-per-task=3"} <= set(given)
        mounts = f"{tmp_path}:{tmp_path},/a b/model:/a b/model"
        assert {f"--container-workdir={tmp_path}", f"--container-mounts={mounts}"} <= set(given)
    with pytest.raises(InputError, match="cannot be mounted in a container"):
        write(tmp_path, job=job, model="/a:b")


def test_what_slurm_is_asked_for(tmp_path: Path) -> None:
    job = SlurmJob("lab", 2, "64G", "1-02:03:04", partition="a,b", cpus=8, name="x")
    asked = [line for line in write(tmp_path, job=job).splitlines() if line.startswith("#SBATCH")]
    assert [line.removeprefix("#SBATCH --") for line in asked] == [
        "job-name=x", "account=lab", "partition=a,b", "nodes=1", "ntasks=1", "gres=gpu:2",
        "cpus-per-task=8", "mem=64G", "time=1-02:03:04", f"output={tmp_path}/x-%j.log",
        "open-mode=append", "requeue", "signal=B:TERM@60",
    ]  # fmt: skip
    fleet = write(tmp_path, job=replace(job, gpus=0), replicas=32)
    assert "#SBATCH --array=0-31\n" in fleet
    assert f"#SBATCH --output={tmp_path}/x-%A_%a.log\n" in fleet
    assert "gres" not in fleet
    assert write(tmp_path).startswith("#!/bin/bash\n#SBATCH ")


@pytest.mark.parametrize("port", [None, 8000])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"environment": "x y"},
        {"environment": "/x y"},
        {"container": "i"},
        {"container": "a.sif"},
    ],
    ids=str,
)
def test_bash_accepts_it(tmp_path: Path, more: dict[str, Any], port: int | None) -> None:
    text = write(tmp_path, *HOSTILE, job=SlurmJob("lab", 1, "1G", "5", **more), port=port)
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "wrong",
    [
        {"account": "a b"}, {"account": ""}, {"account": "x\n#SBATCH --mem=0"}, {"account": "-x"},
        {"name": "a/b"}, {"name": "$(x)"}, {"name": "é"}, {"partition": "a;b"}, {"partition": "a,"},
        {"mem": "64"}, {"mem": "0G"}, {"mem": "64GB"}, {"mem": "64G\n"}, {"mem": 64},
        {"time": "1:00"}, {"time": "1-25:00:00"}, {"time": "0"}, {"time": "00:00:00"},
        {"time": "04:60:00"}, {"time": "4h"}, {"time": "٣"}, {"gpus": -1}, {"gpus": "1"},
        {"cpus": 0},
        {"container": "a\nb"}, {"container": ""}, {"environment": "-n x"},
        {"container": "a", "environment": "b"},
    ],
    ids=str,
)  # fmt: skip
def test_what_a_job_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        SlurmJob(**(RIGHT | wrong))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"folder": Path("/a b")}, "folder"),
        ({"folder": Path("/a%j")}, "folder"),
        ({"port": 0}, "port=0"),
        ({"replicas": 0}, "replicas=0"),
        ({"key_file": Path("/a\nb")}, "key_file"),
        ({"line": ["x", "a\nb"]}, r"a\\nb"),
        ({"line": ["x", "a\x1bb"]}, "control"),
    ],
)
def test_what_a_script_cannot_hold(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        server_script(JOB, **({"line": ["true"], "model": None, "folder": Path("/x")} | wrong))


def test_commands() -> None:
    assert command("diffusion", None) == ["workbench", "serve", "diffusion"]
    options = {"batch_size": "-1", "x-y": "true", "z": "false"}
    assert command("diffusion", "a b", 4, options)[3:] == [
        "--model-path", "a b", "--num_gpus", "4",
        "--batch-size=-1", "--option=x_y=true", "--option=z=false",
    ]  # fmt: skip
    assert command("vllm", "m", 1, {"a-b": "[1]"})[2:] == ["vllm", "--option=a_b=[1]", "m"]
    assert command("vllm", "m", 4)[3:] == ["--option=tensor_parallel_size=4", "m"]
    assert command("vllm", "m", 4, {"tensor_parallel_size": "2", "preset": "70b"})[3:] == [
        "--preset=70b", "--option=tensor_parallel_size=2", "m"
    ]  # fmt: skip
    for kind, model, options in [
        ("sglang", "m", {}),
        ("vllm", "-m", {}),
        ("vllm", "", {}),
        ("vllm", "m", {"api-key": "secret"}),
        ("vllm", "m", {"port": "1"}),
        ("diffusion", "m", {"a b": "1"}),
    ]:
        with pytest.raises(InputError) as raised:
            command(kind, model, 1, options)
        assert "secret" not in str(raised.value)


def call(*arguments: str) -> Any:
    return CliRunner().invoke(parent, ["slurm", "serve", "--account", "lab", *arguments])


def test_the_command_writes_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_RUN_DIR", str(tmp_path / "runs"))
    given = ["--model", "some/model", "--gpus", "2", "--port", "8000", "-o", "batch_size=4"]
    printed = call(*given)
    assert printed.exit_code == 0, printed.output
    job = SlurmJob("lab", 2, "64G", "04:00:00", name="workbench-serve")
    line = command("diffusion", "some/model", 2, {"batch_size": "4"})
    folder = tmp_path / "runs" / "slurm"
    text = server_script(job, line, model="some/model", folder=folder, port=8000)
    assert printed.stdout == text
    assert folder.is_dir()
    assert "set WORKBENCH_API_KEY" in printed.stderr
    fleet = call(*given, "--replicas", "4", "--name", "llama", "--cpus", "3")
    assert {"#SBATCH --array=0-3", "#SBATCH --job-name=llama", "#SBATCH --cpus-per-task=3"} <= {
        *fleet.stdout.splitlines()
    }

    out = tmp_path / "job.sh"
    assert call(*given, "--out", str(out)).exit_code == 0
    assert out.read_text() == printed.stdout
    again = call(*given, "--out", str(out))
    assert (again.exit_code, "exists" in again.stderr) == (2, True)


def test_the_command_submits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = call("--submit")
    assert (missing.exit_code, missing.stdout) == (2, "")
    assert "sbatch is not on the PATH" in missing.stderr
    with pytest.raises(EngineUnavailableError):
        submit("")
    monkeypatch.undo()

    monkeypatch.setenv("WORKBENCH_RUN_DIR", str(tmp_path))
    taken = f"[[ $* == --parsable ]] && cat > {tmp_path}/submitted && echo '4711;cluster'"
    monkeypatch.setenv("PATH", tool(tmp_path, "sbatch", taken)["PATH"])
    done = call("--submit")
    assert (done.exit_code, done.stdout) == (0, "4711\n")
    assert (tmp_path / "submitted").read_text().startswith("#!/bin/bash\n#SBATCH")
    assert f"{tmp_path}/slurm/workbench-serve-4711.json" in done.stderr
    assert "workbench-serve-4711_0 to _7.json" in call("--submit", "--replicas", "8").stderr

    tool(tmp_path, "sbatch", "echo 'Invalid account' >&2; exit 1")
    refused = call("--submit")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "Invalid account" in refused.stderr
    with pytest.raises(EngineError, match="code 1"):
        submit("")


def test_the_command_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_RUN_DIR", str(tmp_path))
    secret = tmp_path / "secret"
    secret.write_text(KEY)
    secret.chmod(0o640)
    for arguments, message in [
        (["--key-file", str(secret)], "chmod 600"),
        (["-o", "x"], "NAME=VALUE"),
        (["--kind", "x"], "diffusion"),
        (["--time", "soon"], "HH:MM:SS"),
        (["--folder", "/proc/none", "--submit"], "/proc/none"),
    ]:
        done = call(*arguments)
        assert (done.exit_code, done.stdout) == (2, "")
        assert message in done.stderr
    secret.chmod(0o600)
    done = call("--key-file", str(secret), "--folder", "/elsewhere")
    assert "set WORKBENCH_API_KEY" not in done.stderr
    assert "/elsewhere must exist" in done.stderr
    assert str(secret) in done.stdout
    assert KEY not in done.output


def run_command(*arguments: str) -> Any:
    return CliRunner().invoke(parent, ["slurm", "run", "--account", "lab", *arguments])


def test_any_command_is_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_RUN_DIR", str(tmp_path))
    taken = f"[[ $* == --parsable ]] && cat > {tmp_path}/submitted && echo 12"
    monkeypatch.setenv("PATH", tool(tmp_path, "sbatch", taken)["PATH"])
    command = ["workbench", "eval", "--task", "it's $HOME"]
    done = run_command("--gpus", "0", "--time", "1:00:00", "--", *command)
    assert (done.exit_code, done.stdout) == (0, "12\n")
    assert f"{tmp_path}/slurm/workbench-run-12.log" in done.stderr
    text = (tmp_path / "submitted").read_text()
    job = SlurmJob("lab", 0, time="1:00:00", name="workbench-run")
    assert text == script(job, command, folder=tmp_path / "slurm")
    assert "#SBATCH --requeue\n" in text
    assert "gres" not in text
    assert "signal" not in text  # so that Slurm's state says that the limit was met
    assert text.endswith("exec workbench eval --task 'it'\"'\"'s $HOME'\n")
    assert run_command("--gpus", "0").exit_code == 2


def test_the_script_of_a_command_runs_it(tmp_path: Path) -> None:
    line = [sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(7)", *HOSTILE]
    text = script(JOB, line, folder=tmp_path)
    done = subprocess.run(["bash"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (7, f"{HOSTILE}\n")


def test_jobs_from_texts() -> None:
    read = SlurmJob.read({"account": "lab", "gpus": "0", "cpus": "4", "time": "1:00:00"})
    assert read == SlurmJob("lab", 0, time="1:00:00", cpus=4)
    for wrong, message in [
        ({}, "account=NAME"),
        ({"account": "lab", "gpu": "1"}, "gpu"),
        ({"account": "lab", "gpus": "many"}, "gpus='many'"),
    ]:
        with pytest.raises(InputError, match=message):
            SlurmJob.read(wrong)


def test_a_task_of_an_array_has_its_own_file(tmp_path: Path) -> None:
    left = tmp_path / "test-70_3.json"
    left.write_text("of the job before it was started again")
    array = {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3"}
    with started(tmp_path, write(tmp_path, replicas=4), **array) as job:
        until((tmp_path / "asked").exists)
        assert not left.exists()
        (tmp_path / "go").touch()
        assert read(left)["job_id"] == "70_3"
        job.terminate()
        assert job.wait(20) == 0
    assert not list(tmp_path.glob("*.json*"))
