"""Servers, commands and sweeps on a real Slurm: its controller and one node, on this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from getpass import getuser
from pathlib import Path
from typing import Any

import pytest

from workbench import open_engine
from workbench.errors import EngineError
from workbench.serving import slurm
from workbench.serving.slurm import SlurmJob
from workbench.sweep import Grid, SlurmArray, Sweep, read_results, run

pytestmark = pytest.mark.slow

PACKAGES = ["slurmctld", "slurmd", "slurm-client"]
KEY = "a-key-for-tests"
WORKBENCH = [sys.executable, "-m", "workbench"]
SMALL = ["--account", "lab", "--gpus", "0", "--mem", "100M"]
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
SlurmctldPort={controller}
SlurmdPort={node}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=1,sched_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
OverTimeLimit=0
KillWait=5
PlugStackConfig=/dev/null
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=64000 State=UNKNOWN
PartitionName=all Nodes=localhost Default=YES MaxTime=INFINITE State=UP
"""
# A point says that it starts, and waits while a file of its number is there.
POINT = """
import os, time
from pathlib import Path
from workbench.runs import save_metrics
here = Path(place)
(here / f"store-{n}").write_text(os.environ["WORKBENCH_STORE"])
with (here / "starts").open("a") as file:
    file.write(f"{n} {os.environ['SLURM_ARRAY_JOB_ID']}\\n")
while (here / f"hold-{n}").exists():
    time.sleep(0.1)
assert n != bad, "a bad point"
save_metrics(square=n**2)
"""


def until(holds: Callable[[], Any], patience: float = 120) -> None:
    limit = time.monotonic() + patience
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.2)


def free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def installed() -> None:
    """Install Slurm where that is possible; else skip, with the reason."""
    if all(shutil.which(name) for name in ("slurmctld", "slurmd", "sbatch")):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        pytest.skip(f"needs Slurm: as root, apt-get install {' '.join(PACKAGES)}")
    subprocess.run(["apt-get", "update", "-q"], check=False)
    command = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"Slurm cannot be installed: {done.stderr.strip()[-300:]}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A controller and one node with eight cores, whatever this machine has."""
    folder = tmp_path_factory.mktemp("slurm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin:/sbin")
        patch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        for name in [name for name in os.environ if name.startswith("SLURM")]:
            patch.delenv(name)
        installed()
        host = socket.gethostname().partition(".")[0]
        ports = {"controller": free(), "node": free()}
        config = folder / "slurm.conf"
        config.write_text(CONFIG.format(host=host, user=getuser(), folder=folder, **ports))
        patch.setenv("SLURM_CONF", str(config))
        (folder / "state").mkdir()
        (folder / "spool").mkdir()
        daemons = [
            subprocess.Popen(
                [name, "-D", "-f", str(config)], stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
            for name in ("slurmctld", "slurmd")
            for log in [(folder / f"{name}.log").open("wb")]
        ]
        try:
            until(lambda: asked("sinfo", "-h", "-o", "%T") == "idle" or died(daemons), 60)
            if died(daemons):
                texts = [(folder / f"{name}.log").read_text() for name in ("slurmctld", "slurmd")]
                pytest.skip(f"Slurm does not run here: {[text[-300:] for text in texts]}")
            yield
        finally:
            asked("scancel", f"--user={getuser()}")
            until(lambda: not asked("squeue", "-h"), 60)
            for daemon in reversed(daemons):
                daemon.terminate()
                daemon.wait(30)


def died(daemons: list[subprocess.Popen[bytes]]) -> bool:
    return any(daemon.poll() is not None for daemon in daemons)


def asked(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return done.stdout.strip()


def states(job: str) -> dict[str, str]:
    return {number: task.state for number, task in (slurm.states(job) or {}).items()}


def workbench(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*WORKBENCH, *arguments], capture_output=True, text=True, check=False,
        env={**os.environ, **variables},
    )  # fmt: skip


def test_a_fleet(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_API_KEY", KEY)
    submit = ["--replicas", "2", "--time", "10", "-o", "device=cpu", "--folder", str(tmp_path)]
    done = workbench("slurm", "serve", *SMALL, *submit, "--submit")
    assert done.returncode == 0, done.stderr
    job = done.stdout.strip()
    files = [tmp_path / f"workbench-serve-{job}_{number}.json" for number in (0, 1)]
    try:
        until(lambda: all(file.exists() for file in files))
        ready = [json.loads(file.read_text()) for file in files]
        assert [one["job_id"] for one in ready] == [f"{job}_0", f"{job}_1"]
        assert all(one["url"] == f"http://localhost:{one['port']}/v1" for one in ready)
        for base in [*([one["url"]] for one in ready), [one["url"] for one in ready]]:
            engine = open_engine(engine="remote", base_url=base, store=None)
            with engine:
                assert [one.error for one in engine.generate(["12+30="] * 4)] == [None] * 4
        # A task that is started again has no file until it answers again.
        asked("scontrol", "requeue", f"{job}_1")
        until(lambda: not files[1].exists())
        until(lambda: states(job)["1"] == "PENDING")
        asked("scontrol", "update", f"JobId={job}_1", "StartTime=now")
        until(files[1].exists)
        assert json.loads(files[1].read_text())["job_id"] == f"{job}_1"
    finally:
        slurm.cancel(job)
    assert not list(tmp_path.glob("*.json*"))
    assert set(states(job).values()) == {"CANCELLED"}


def test_a_command(cluster: None, tmp_path: Path) -> None:
    line = ["sh", "-c", 'echo "job $SLURM_JOB_ID in $PWD"; exit 3']
    done = workbench("slurm", "run", *SMALL, "--time", "5", "--folder", str(tmp_path), "--", *line)
    assert done.returncode == 0, done.stderr
    job = done.stdout.strip()
    until(lambda: asked("squeue", "-h", "-t", "all", f"--jobs={job}", "-o", "%T") == "FAILED")
    log = (tmp_path / f"workbench-run-{job}.log").read_text()
    assert log == f"job {job} in {Path.cwd()}\n"
    refused = workbench("slurm", "run", *SMALL, "--partition", "none", "--", "true")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "invalid partition" in refused.stderr


@pytest.fixture
def points(cluster: None, tmp_path: Path) -> Path:
    """A sweep of six points in a YAML file."""
    place = f"n: int = 1\nbad: int = 0\nplace: str = {str(tmp_path)!r}"
    cells: list[dict[str, Any]] = [
        {"cell_type": "code", "source": source, "metadata": {"tags": tags}, "outputs": [],
         "execution_count": None}
        for source, tags in ((place, ["parameters"]), (POINT, []))
    ]  # fmt: skip
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}
    (tmp_path / "square.ipynb").write_text(json.dumps(notebook))
    text = "notebook: square.ipynb\nproduct: {n: [1, 2, 3, 4, 5, 6]}\nfixed: {bad: 4}\n"
    (tmp_path / "six.yaml").write_text(text)
    return tmp_path


def hold(folder: Path, *numbers: int) -> None:
    for number in numbers:
        (folder / f"hold-{number}").touch()


def release(folder: Path, *numbers: int) -> None:
    for number in numbers:
        (folder / f"hold-{number}").unlink()


def starts(folder: Path) -> list[tuple[int, str]]:
    """Each start of a point: its number and its array."""
    path = folder / "starts"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(number), job) for number, job in map(str.split, lines)]


def sweep_line(folder: Path, time: str = "10") -> list[str]:
    settings = {"account": "lab", "gpus": "0", "mem": "100M", "time": time}
    line = ["sweep", "run", str(folder / "six.yaml"), "--out", str(folder / "out"), "--jobs", "2"]
    return line + [f"--slurm={name}={value}" for name, value in settings.items()]


@contextmanager
def sweeping(folder: Path, **options: str) -> Iterator[subprocess.Popen[str]]:
    with (folder / "said").open("w") as said:
        line = [*WORKBENCH, *sweep_line(folder, **options)]
        process = subprocess.Popen(line, stdout=said, stderr=said, text=True)
        try:
            yield process
        finally:
            process.kill()
            process.wait(30)


def rows(folder: Path) -> Mapping[int, Mapping[str, Any]]:
    return {row["n"]: row for row in read_results(folder / "out").rows}


def test_a_sweep_says_truly_how_points_ended(points: Path) -> None:
    """At most two at a time; one is cancelled, one meets the limit of a minute, one raises."""
    hold(points, 5, 6)
    most = 0
    with sweeping(points, time="1") as driver:
        until(lambda: starts(points))
        job, cancelled = starts(points)[0][1], False
        while driver.poll() is None:
            now = states(job)
            most = max(most, [*now.values()].count("RUNNING"))
            if now.get("5") == "RUNNING" and 6 in dict(starts(points)) and not cancelled:
                asked("scancel", f"{job}_5")
                cancelled = True
            time.sleep(0.3)
    assert driver.returncode == 1, (points / "said").read_text()
    assert most == 2
    found = rows(points)
    assert {n: row["state"] for n, row in found.items()} == {
        1: "done", 2: "done", 3: "done", 4: "failed", 5: "timeout", 6: "killed"
    }  # fmt: skip
    assert [found[n]["square"] for n in (1, 2, 3)] == [1, 4, 9]
    assert "a bad point" in found[4]["detail"]
    assert found[5]["detail"] == f"job {job}_4: TIMEOUT (TimeLimit)"
    assert found[5]["seconds"] >= 60
    assert found[6]["detail"].startswith(f"job {job}_5: CANCELLED")
    assert found[1]["machine"] == socket.gethostname()
    assert sorted(n for n, _ in starts(points)) == [1, 2, 3, 4, 5, 6]
    store = points / "out" / "stores" / f"{found[3]['key']}.sqlite"
    assert (points / "store-3").read_text() == str(store)

    release(points, 5, 6)
    assert workbench(*sweep_line(points)).returncode == 1  # failed points stay
    assert len(starts(points)) == 6
    again = workbench(*sweep_line(points), "--retry-failed")
    assert again.returncode == 1, again.stderr  # the bad point again
    assert {n: row["state"] for n, row in rows(points).items()} == {
        1: "done", 2: "done", 3: "done", 4: "failed", 5: "done", 6: "done"
    }  # fmt: skip
    assert sorted(n for n, _ in starts(points)[6:]) == [4, 5, 6]


def test_a_killed_sweep_starts_nothing_twice_at_a_time(points: Path) -> None:
    hold(points, 3, 4, 5, 6)
    with sweeping(points) as driver:
        until(lambda: len(starts(points)) == 4)
        job = starts(points)[0][1]
        driver.kill()  # without a driver, the array runs on
    release(points, 3)
    until(lambda: len(starts(points)) == 5)
    seen = {n: row["state"] for n, row in rows(points).items()}
    assert seen == {1: "done", 2: "done", 3: "done", 4: "running", 5: "running", 6: "waiting"}
    with sweeping(points) as driver:
        until(lambda: len(starts(points)) == 7)
        assert {n: states(job)[n] for n in "345"} == dict.fromkeys("345", "CANCELLED")
        release(points, 4, 5, 6)
        assert driver.wait(120) == 1
    new = starts(points)[-1][1]
    assert new != job
    assert sorted(starts(points)) == sorted(
        [*((n, job) for n in (1, 2, 3, 4, 5)), *((n, new) for n in (4, 5, 6))]
    )
    assert [row["state"] for row in rows(points).values()].count("done") == 5
    assert not list((points / "out").glob("tasks-*"))


def test_ctrl_c_cancels_the_array(points: Path) -> None:
    hold(points, 2, 3)
    with sweeping(points) as driver:
        until(lambda: len(starts(points)) == 3)
        job = starts(points)[0][1]
        until(lambda: "1/6" in (points / "said").read_text())
        driver.send_signal(signal.SIGINT)
        assert driver.wait(60) == 130
    assert {n: states(job)[n] for n in "12345"} == dict.fromkeys("12345", "CANCELLED")
    seen = [row["state"] for row in rows(points).values()]
    assert (seen.count("done"), seen.count("waiting")) == (1, 5)


def test_a_node_that_fails(points: Path) -> None:
    """A task that may start again does, elsewhere or later; one that may not is a killed point."""
    hold(points, 1, 2)
    with sweeping(points) as driver:
        until(lambda: len(starts(points)) == 2)
        job = starts(points)[0][1]
        asked("scontrol", "update", f"JobId={job}_0", "Requeue=0")
        asked("scontrol", "update", "NodeName=localhost", "State=DOWN", "Reason=a test")
        until(lambda: states(job)["0"] == "NODE_FAIL")
        release(points, 1, 2)
        asked("scontrol", "update", "NodeName=localhost", "State=RESUME")
        until(lambda: states(job)["1"] == "PENDING")
        asked("scontrol", "update", f"JobId={job}_1", "StartTime=now")
        assert driver.wait(180) == 1
    found = rows(points)
    assert (found[1]["state"], found[2]["state"]) == ("killed", "done")
    assert found[1]["detail"].startswith(f"job {job}_0: NODE_FAIL")
    assert sorted(n for n, _ in starts(points)) == [1, 2, 2, 3, 4, 5, 6]


def test_what_cannot_run_there(points: Path, tmp_path: Path) -> None:
    grid = Grid(product={"n": [1, 2]})
    notebook = points / "square.ipynb"
    array = SlurmArray(SlurmJob("lab", 0, "100M", "5", partition="none"))
    with pytest.raises(EngineError, match="invalid partition"):
        run(Sweep(notebook=notebook, name="x", grid=grid), tmp_path / "out", executor=array)
    assert {row["state"] for row in rows(tmp_path).values()} == {"waiting"}
    job = SlurmJob("lab", 0, "100M", "5", environment="/nowhere")
    sweep = Sweep(notebook=notebook, name="x", grid=grid)
    found = run(sweep, tmp_path / "out", executor=SlurmArray(job)).table
    assert {*found["state"]} == {"failed"}
    assert all("/nowhere/bin/activate: No such file" in detail for detail in found["detail"])
