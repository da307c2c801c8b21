"""Sweeps as arrays of a Slurm that is made of three short programs: what may go wrong there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench.errors import EngineError, EngineUnavailableError, InputError
from workbench.serving import slurm
from workbench.serving.slurm import SlurmJob
from workbench.sweep import Grid, SlurmArray, Sweep, read_results, run
from workbench.sweep import slurm as arrays
from workbench.sweep.folder import SweepFolder, note_job, note_own_job, record_end

RUNS = 'for i in 0 1; do echo "$i|RUNNING|None|0:10"; done'
SILENT = 'echo "Unable to contact slurm controller" >&2; exit 1'


@pytest.fixture
def tool(points: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Writes a program of Slurm; each call of one is a line in `calls`."""
    monkeypatch.setenv("PATH", f"{points / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(arrays, "LOOK", 0.02)
    monkeypatch.setattr(arrays, "ASK", 0.05)
    (points / "bin").mkdir()
    (points / "calls").touch()

    def write(name: str, text: str) -> None:
        file = points / "bin" / name
        file.write_text(f'#!/bin/bash\necho "{name} $*" >> {points}/calls\n{text}\n')
        file.chmod(0o755)

    write("sbatch", "cat > /dev/null; echo 4711")
    write("scancel", f": > {points}/cancelled")
    write("squeue", f"[[ -e {points}/cancelled ]] || {{ {RUNS}; }}")
    return write


def calls(points: Path, name: str) -> list[str]:
    lines = (points / "calls").read_text().splitlines()
    return [line for line in lines if line.startswith(name)]


def two() -> Sweep:
    return Sweep(notebook=Path("point.ipynb"), name="mine", grid=Grid(product={"n": [1, 2]}))


def go(folder: str | Path = "out", **options: Any) -> dict[int, tuple[str, str]]:
    array = SlurmArray(SlurmJob("lab", 0))
    found = run(two(), folder, jobs=2, executor=array, **options)
    return {row["n"]: (row["state"], row["detail"]) for row in found.rows}


def done(folder: Path) -> None:
    """What a task does at its end."""
    (folder / "out.ipynb").write_text("{}")
    record_end(folder, "done", "", {"seconds": 1.0})


def later(act: Callable[[Path], object]) -> None:
    """Do this once both points have their tasks."""

    def wait() -> None:
        limit = time.monotonic() + 30
        while len(notes := sorted(Path("out").absolute().glob("*/pid.json"))) < 2:
            if time.monotonic() > limit:
                return
            time.sleep(0.02)
        time.sleep(0.2)
        act(notes[0].parent)

    threading.Thread(target=wait).start()


def interrupt(_: object = None) -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("said", "job"),
    [
        ("4711", "4711"),
        ("4711;gpu", "4711;gpu"),
        ("Welcome: 10 hours left\n4711\n", "4711"),
        ("Submitted batch job 4711", "4711"),
        ("Submitted batch job 4711 on cluster gpu", "4711;gpu"),
        ("", None),
        ("4711 hours are left", None),
        ("-u", None),
    ],
)
def test_the_id_is_read_or_refused(tool: Any, said: str, job: str | None) -> None:
    tool("sbatch", f"cat > /dev/null; printf '%s' '{said}'")
    if job is not None:
        assert slurm.submit("x") == job
        return
    with pytest.raises(EngineError, match="no job's id") as raised:
        slurm.submit("x")
    assert repr(said) in str(raised.value)


def test_an_array_on_another_cluster_is_asked_for_and_cancelled_there(
    tool: Any, points: Path
) -> None:
    tool("sbatch", "cat > /dev/null; echo '4711;gpu'")
    unknown = '{ echo "Invalid job id specified" >&2; exit 1; }'
    known = f'echo "CLUSTER: gpu"; [[ -e {points}/cancelled ]] || {{ {RUNS}; }}'
    tool("squeue", f'[[ "$*" == *--clusters=gpu* ]] || {unknown}; {known}')
    notes: list[Any] = []

    def stop(folder: Path) -> None:
        notes.append(json.loads((folder / "pid.json").read_text()))
        interrupt()

    later(stop)
    with pytest.raises(KeyboardInterrupt):
        go()
    assert notes[0]["job"] in {"4711_0;gpu", "4711_1;gpu"}
    assert calls(points, "scancel") == ["scancel --clusters=gpu 4711"]

    # What a killed sweep has left is known by its notes.
    (points / "cancelled").unlink()
    place = SweepFolder(points / "out")
    note_job(place.begin(two().points[0]), "4711;gpu", 0)
    note_own_job(points / "out" / two().points[0].key, "4711", 0)  # a task keeps what is there
    assert read_results("out").states == {"running": 1, "waiting": 1}
    place.end_jobs()
    assert calls(points, "scancel")[1:] == ["scancel --clusters=gpu 4711"]
    assert not [*points.glob("out/*/pid.json")]


@pytest.mark.parametrize("job", ["--user=me_0", "_0", "4711_0; gpu", "4711_0\n", "٣_0", 4711])
def test_a_note_that_is_no_job_cancels_nothing(
    tool: Any, points: Path, job: object, caplog: pytest.LogCaptureFixture
) -> None:
    place = SweepFolder(points / "out")
    note = place.begin(two().points[0]) / "pid.json"
    note.write_text(json.dumps({"job": job}))
    place.end_jobs()
    assert not calls(points, "s")
    assert "is no job of this folder" in caplog.text


def test_a_copy_does_not_cancel_the_originals_array(tool: Any, points: Path) -> None:
    place = SweepFolder(points / "out")
    target = place.begin(two().points[0])
    note_job(target, "4711", 0)
    shutil.copytree(points / "out", points / "copy")
    copy = SweepFolder(points / "copy")
    assert copy.state(two().points[0], others={}).status == "waiting"
    copy.end_jobs()
    assert not calls(points, "scancel")
    (points / "link").symlink_to(points / "out")
    SweepFolder(points / "link").end_jobs()  # the same folder by another name
    assert calls(points, "scancel") == ["scancel 4711"]
    (target / "pid.json").write_text('{"job": "4712_0"}')  # of an earlier version, or a task's own
    place.end_jobs()
    assert calls(points, "scancel")[1:] == ["scancel 4712"]


def test_an_array_that_cannot_be_cancelled_keeps_its_tasks(
    tool: Any, points: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = SweepFolder(points / "out")
    note_job(place.begin(two().points[0]), "4711", 0)
    (points / "out" / "tasks-1.pickle").touch()
    (points / "bin" / "scancel").unlink()
    monkeypatch.setenv("PATH", str(points / "bin"))
    with pytest.raises(EngineUnavailableError, match="scancel"):
        place.end_jobs()
    assert (points / "out" / "tasks-1.pickle").exists()
    tool("scancel", f": > {points}/cancelled")
    place.end_jobs()
    assert not (points / "out" / "tasks-1.pickle").exists()


def test_ctrl_c_keeps_what_has_just_ended(tool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "LOOK", 100)

    def end_one(folder: Path) -> None:
        done(folder)
        interrupt()

    later(end_one)
    with pytest.raises(KeyboardInterrupt):
        go()
    assert read_results("out").states == {"done": 1, "waiting": 1}


def test_a_changed_file_keeps_nothing_that_it_may_have_changed(
    tool: Any, points: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise InputError("helper.py has changed")

    sweep = two()

    def change(folder: Path) -> None:
        monkeypatch.setattr(sweep.beside, "check", refuse)
        done(folder)

    later(change)
    with pytest.raises(InputError, match="has changed"):
        run(sweep, "out", executor=SlurmArray(SlurmJob("lab", 0)))
    assert read_results("out").states == {"waiting": 2}


def test_two_wrong_answers_far_apart_end_no_point(tool: Any, points: Path) -> None:
    tool(
        "squeue",
        f"n=$(grep -c squeue {points}/calls); [[ $n == 2 || $n == 6 ]] && exit 0; {RUNS}\n"
        f"[[ $n -lt 9 ]] || touch {points}/asked",
    )

    def end(_: Path) -> None:
        while not (points / "asked").exists():
            time.sleep(0.02)
        for params in points.glob("out/*/params.json"):
            done(params.parent)

    later(end)
    assert {state for state, _ in go().values()} == {"done"}
    assert not calls(points, "scancel")


def test_a_task_that_slurm_does_not_know_is_cancelled_first(tool: Any, points: Path) -> None:
    """The first one records its end while it is cancelled."""
    first = two().points[0].key
    record = f'{{"status": "done", "detail": "", "seconds": 1, "files": {{}}}}\' > {points}/out'
    tool("squeue", "exit 0")
    tool("scancel", f"[[ $1 != 4711_0 ]] || echo '{record}/{first}/DONE")
    found = go()
    assert calls(points, "scancel") == ["scancel 4711_0", "scancel 4711_1"]
    assert found[1][1] == "DONE is broken"  # here it names no files; it is not replaced
    assert found[2][0] == "failed"
    assert found[2][1].startswith("job 4711_1: Slurm does not know it any more")


@pytest.mark.parametrize("how", ["silent", "hangs"])
def test_ctrl_c_waits_once_for_a_controller_that_is_gone(
    tool: Any, points: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, how: str
) -> None:
    tool("scancel", SILENT)
    tool("squeue", SILENT)
    monkeypatch.setattr(slurm.cancel, "__defaults__", (0.1,))
    if how == "hangs":
        real = slurm._asked

        def asked(name: str, *arguments: str, **options: Any) -> Any:
            if name == "scancel":
                raise subprocess.TimeoutExpired(name, 60)
            return real(name, *arguments, **options)

        monkeypatch.setattr(slurm, "_asked", asked)
    later(interrupt)
    with pytest.raises(KeyboardInterrupt):
        go()
    said = [one.getMessage() for one in caplog.records if "may still run" in one.getMessage()]
    assert len(said) == 1
    assert "`scancel 4711`" in said[0]
    assert ("did not answer" if how == "hangs" else "Unable to contact") in said[0]
    assert len(calls(points, "scancel")) == (how == "silent")
    assert len([*points.glob("out/*/pid.json")]) == 2  # the next run cancels them


def test_a_refusal_costs_no_earlier_result(
    tool: Any, points: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("out", "my out"):
        for point in two().points:
            done(SweepFolder(points / name).begin(point))
    with pytest.raises(InputError, match="folder"):
        go("my out", resume=False)
    tool("sbatch", "echo 'QOSMaxSubmitJobPerUserLimit' >&2; exit 1")
    with pytest.raises(EngineError, match="QOSMaxSubmit"):
        go(resume=False)
    assert read_results("out").states == {"done": 2}
    assert not (points / "out" / ".earlier").exists()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EngineUnavailableError, match="sbatch"):
        go(resume=False)
    for name in ("out", "my out"):
        assert read_results(name).states == {"done": 2}


def test_what_squeue_may_print_or_not_start(tool: Any, points: Path) -> None:
    tool("squeue", r"printf 'caf\xe9\n'; printf 'caf\xe9\n' >&2; echo '0|RUNNING|None|0:10'")
    assert {n: one.state for n, one in (slurm.states("4711") or {}).items()} == {"0": "RUNNING"}
    (points / "bin" / "squeue").write_bytes(b"\x7fELF broken")
    assert slurm.states("4711") is None
