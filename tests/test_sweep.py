"""Sweeps over real kernels: what is done stays done, what failed says so, nothing is made up."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from typer.testing import CliRunner

from workbench.cli.sweep import app
from workbench.engines.cpu import threads
from workbench.engines.vllm import unavailable
from workbench.errors import EngineUnavailableError, InputError, WorkbenchError
from workbench.plots import new_figure
from workbench.plots.points import averaged
from workbench.plots.sweep import plot_lines, plot_pareto
from workbench.report.sweeps import sweep_report
from workbench.serving.slurm import SlurmJob
from workbench.stats import mean, paired_shares
from workbench.sweep import Grid, Results, SlurmArray, Sweep, folder, paired, read_results, run
from workbench.sweep.folder import SweepFolder, note_job, record_end
from workbench.sweep.plan import SweepPoint
from workbench.sweep.results import results, save_results
from workbench.sweep.run import _shares, todo

FILE = "notebook: point.ipynb\nproduct: {n: [1, 2, 3]}\nseeds: 2\n"
CLI = [sys.executable, "-m", "workbench", "sweep"]
ENDS = {
    "1-0": "raise ValueError('no such thing')",
    "2-0": "os.kill(os.getpid(), signal.SIGKILL)",
    "3-0": "time.sleep(600)",
}


def of(**parts: Any) -> Sweep:
    return Sweep(notebook=Path("point.ipynb"), name="mine", **parts)


def tallied(points: Path) -> Counter[str]:
    """How often each point has begun."""
    tally = points / "tally"
    return Counter(tally.read_text().split("\n")[:-1]) if tally.exists() else Counter()


def kept(place: SweepFolder, point: SweepPoint, metrics: str) -> None:
    """A done point, as a sweep leaves it."""
    target = place.begin(point)
    (target / "out.ipynb").write_text("{}")
    (target / "result" / "metrics.json").write_text(metrics)
    record_end(place.of(point), "done", "", {"seconds": 0.5})


def by_point(found: Results) -> dict[str, dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(found.table.to_json(orient="records"))
    return {f"{row['n']}-{row['seed']}": row for row in rows}


def test_every_end_is_told_and_a_resumed_sweep_is_as_an_undisturbed_one(points: Path) -> None:
    sweep = replace(of(grid=Grid(product={"n": [1, 2, 3]}, seeds=(0, 1))), timeout=12)
    calm = run(sweep, points / "calm", jobs=2)
    assert set(calm.table["state"]) == {"done"}
    (points / "tally").unlink()

    (points / "broken").mkdir()
    for name, code in ENDS.items():
        (points / "broken" / name).write_text(code)
    lines: list[str] = []
    found = by_point(run(sweep, points / "runs", jobs=3, say=lines.append))
    assert {name: row["state"] for name, row in found.items()} == {
        "1-0": "failed", "2-0": "killed", "3-0": "timeout",
        "1-1": "done", "2-1": "done", "3-1": "done",
    }  # fmt: skip
    assert found["1-0"]["detail"] == "cell 1: ValueError: no such thing"
    assert found["2-0"]["detail"] == "cell 1: the kernel died"
    assert found["3-0"]["detail"] == "cell 1: still running"
    assert found["2-0"]["square"] is None
    assert (found["2-1"]["square"], found["2-1"]["square.low"], found["2-1"]["seeded"]) == (4, 3, 3)
    assert datetime.fromisoformat(found["2-1"]["ended"]).tzinfo is not None
    assert len(lines) == 6
    assert any("n=1, seed=0: failed" in line and "no such thing" in line for line in lines)

    # Failed points stay as they are until they are asked for; done ones are never run again.
    (points / "broken" / "1-0").unlink()
    (points / "broken" / "2-0").unlink()
    (points / "broken" / "3-0").unlink()
    again = run(sweep, points / "runs")
    assert again.states == {"failed": 1, "killed": 1, "timeout": 1, "done": 3}
    repaired = run(sweep, points / "runs", jobs=3, retry_failed=True)
    assert tallied(points) == Counter({f"{n} {seed}": 1 + (seed == 0) for n in (1, 2, 3)
                                       for seed in (0, 1)})  # fmt: skip
    same = ["key", "state", "n", "seed", "square", "square.low", "square.n", "seeded"]
    pd.testing.assert_frame_equal(repaired.table[same], calm.table[same])
    kept = pd.read_parquet(points / "runs" / "results.parquet")
    pd.testing.assert_frame_equal(kept[same], calm.table[same])
    assert len(pd.read_csv(points / "runs" / "results.csv")) == 6
    assert (read_results(points / "runs").varied, repaired.metrics) == (
        ("n", "seed"), ("square", "seeded")
    )  # fmt: skip


def test_ctrl_c_and_kill_9_cost_nothing_that_is_done(points: Path) -> None:
    (points / "mine.yaml").write_text(FILE + "fixed: {do: time.sleep(2)}\n")
    command = [*CLI, "run", "mine.yaml", "--out", "runs"]
    for number in (signal.SIGINT, signal.SIGKILL, signal.SIGTERM):
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            begun = sum(tallied(points).values())
            while sum(tallied(points).values()) < begun + 2 and process.poll() is None:
                time.sleep(0.05)  # one more is done, and the next one is at work
            process.send_signal(number)
            out, printed = process.communicate(timeout=60)
        assert process.returncode == {2: 130, 9: -9, 15: 143}[number], (out, printed)
        if number == signal.SIGINT:
            assert b"run it again and it resumes" in printed
    found = run(Sweep.read("mine.yaml"), points / "runs", jobs=2)
    assert found.states == {"done": 6}
    assert sorted(tallied(points).values()) == [1, 1, 1, 2, 2, 2]  # three were interrupted
    left = [p for p in psutil.process_iter(["cmdline", "cwd"])
            if p.info["cwd"] == str(points) and p.pid != os.getpid()]  # fmt: skip
    assert not left


def test_a_process_is_known_whenever_the_clock_is_set(
    points: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (point,) = of(grid=Grid(product={"n": [1]})).points
    place = SweepFolder(points / "runs")
    note = place.begin(point) / "pid.json"

    def state() -> str:
        return place.state(point, others={}).status

    with subprocess.Popen(["sleep", "60"]) as sleep:
        place.runs(point, sleep.pid)
        true = note.read_text()
        made = psutil.Process(sleep.pid).create_time()
        for other in (
            {"pid": sleep.pid, "created": made},  # as it was written once
            {"pid": sleep.pid, "born": "another"},
            {"pid": "text", "born": made},
            {"pid": -1},
        ):
            note.write_text(json.dumps(other))
            assert state() == "waiting"
            place.begin(point)
            assert sleep.poll() is None  # it only has the same number
        note.write_text(true)
        with monkeypatch.context() as patch:
            if sys.platform == "linux":
                patch.setattr(psutil.Process, "create_time", lambda _: made + 3600)
            assert state() == "running"
        place.begin(point)
        assert not psutil.pid_exists(sleep.pid)


def test_a_point_that_is_interrupted_again_keeps_its_earlier_result(points: Path) -> None:
    (point,) = of(grid=Grid(product={"n": [1]})).points
    place = SweepFolder(points / "runs")
    record_end(place.begin(point), "failed", "the first", {"seconds": 0.5})
    for end in (place.drop, lambda _: place.settle()):  # at once, or at the start of the next run
        for _ in range(2):  # the first one by `kill -9`
            assert not [*place.begin(point).glob("FAILED")]
        end(point)
        assert place.state(point, others={}).detail == "the first"
    (points / "runs" / ".earlier").touch()  # it cannot be set aside
    with pytest.raises(FileExistsError):
        place.begin(point)
    assert place.state(point, others={}).detail == "the first"
    (points / "runs" / ".earlier").unlink()

    record_end(place.begin(point), "failed", "the second", {"seconds": 0.5})  # as on a cluster
    place.settle()
    assert not (points / "runs" / ".earlier").exists()
    place.begin(point)
    place.drop(point)
    assert place.state(point, others={}).detail == "the second"


def test_a_full_disk_costs_no_earlier_result(points: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = of(grid=Grid(product={"n": [1, 2]}))
    assert run(sweep, points / "runs").states == {"done": 2}
    for allowed in (0, 2):  # the first file, and the record of its end
        with monkeypatch.context() as patch:
            left = [allowed]
            real = folder._write

            def full(path: Path, value: Any, left: list[int] = left, real: Any = real) -> None:
                left[0] -= 1
                if left[0] < 0:
                    raise OSError(errno.ENOSPC, "No space left on device")
                real(path, value)

            patch.setattr(folder, "_write", full)
            with pytest.raises(WorkbenchError, match="make room"):
                run(sweep, points / "runs", resume=False)
        assert run(sweep, points / "runs").states == {"done": 2}
    assert sum(tallied(points).values()) == 3  # the second failure came after a point had run


def test_two_sweeps_do_not_work_in_one_folder(points: Path) -> None:
    sweep = of(grid=Grid(product={"n": [1]}))
    with (
        SweepFolder(points / "runs").lock(),
        pytest.raises(InputError, match="another sweep is running"),
    ):
        run(sweep, points / "runs")
    assert run(sweep, points / "runs").states == {"done": 1}


def test_a_changed_notebook_or_model_makes_results_stale_and_says_so(points: Path) -> None:
    sweep = of(grid=Grid(product={"n": [1, 2]}))
    assert run(sweep, points / "runs").states == {"done": 2}
    text = (points / "point.ipynb").read_text()
    (points / "point.ipynb").write_text(text.replace("n * n - 1", "n * n - 2"))
    changed = of(grid=Grid(product={"n": [1, 2, 3]}))
    seen = results(changed.points, SweepFolder(points / "runs"))
    assert list(seen.table["state"]) == ["stale", "stale", "waiting"]
    assert seen.table["detail"][0] == "there is a result from before the notebook changed"
    assert "square" not in seen.table  # a stale number is no result
    found = run(changed, points / "runs")
    assert found.states == {"done": 3}
    assert list(found.table["square.low"]) == [-1, 2, 7]


def test_a_changed_model_or_version_makes_results_stale(
    points: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = points / "llama"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"one")

    def sweep() -> Sweep:
        fresh = of(grid=Grid(product={"n": [1]}), fixed={"model": str(model)})
        return replace(fresh, notebook=Path("model.ipynb"))

    def state() -> tuple[str, str]:
        (row,) = results(sweep().points, place).table.to_dict("records")
        return row["state"], row["detail"]

    place = SweepFolder(points / "runs")
    kept(place, sweep().points[0], "{}")
    assert state()[0] == "done"
    (model / "model.safetensors").write_bytes(b"two")
    assert state() == ("stale", "there is a result from before the model changed")
    monkeypatch.setattr("workbench.sweep.plan.__version__", "9.9")
    assert state() == ("stale", "there is a result from before workbench and the model changed")


@pytest.mark.parametrize(
    ("harm", "detail"),
    [
        (lambda at: (at / "result/metrics.json").unlink(), "result/metrics.json is missing"),
        (lambda at: (at / "result/metrics.json").write_text("{"), "metrics.json has changed"),
        (lambda at: (at / "out.ipynb").write_text("{}"), "out.ipynb has changed"),
        (lambda at: (at / "DONE").write_text('{"sta'), "DONE is broken"),
    ],
)
def test_a_deleted_or_half_written_result_is_seen_and_made_again(
    points: Path, harm: Any, detail: str
) -> None:
    sweep = of(grid=Grid(product={"n": [2]}))
    run(sweep, points / "runs")
    harm(points / "runs" / sweep.points[0].key)
    (seen,) = read_results(points / "runs").table.to_dict("records")
    assert seen["state"] == "stale"
    assert detail in seen["detail"]
    assert list(run(sweep, points / "runs").table["square"]) == [4]


def test_a_flood_of_output_is_cut_and_forks_are_ended(points: Path) -> None:
    flood = "for _ in range(100): print('x' * 2**20)"
    fork = "os.fork() or (os.setsid(), time.sleep(600))"
    daemon = "import subprocess; subprocess.Popen(['sleep', '600'], start_new_session=True)"
    both = [{"n": 1, "do": flood}, {"n": 2, "do": fork}, {"n": 3, "do": daemon}]
    found = run(replace(of(grid=Grid(list=both)), timeout=60), points / "runs", jobs=3)
    states = dict(zip(found.table["n"], found.table["state"], strict=True))
    assert states[1] == states[3] == "done"
    assert states[2] in {"done", "failed"}
    (first,) = (p for p in of(grid=Grid(list=both)).points if p.parameters["n"] == 1)
    copy = points / "runs" / first.key / "out.ipynb"
    assert copy.stat().st_size < 12 * 2**20
    assert "output cut" in copy.read_text()
    assert not [p for p in psutil.process_iter(["cmdline"])
                if p.info["cmdline"] == ["sleep", "600"]]  # fmt: skip


def test_a_full_disk_ends_the_sweep_with_a_word_and_keeps_what_is_done(points: Path) -> None:
    sweep = of(grid=Grid(product={"n": [1, 2]}))
    run(of(grid=Grid(product={"n": [1]})), points / "runs")
    code = (
        "from pathlib import Path\nfrom workbench.sweep import *\nimport resource, sys\n"
        "grid = Grid(product={'n': [1, 2]})\n"
        "sweep = Sweep(notebook=Path('point.ipynb'), name='mine', grid=grid)\n"
        "sweep.points\nresource.setrlimit(resource.RLIMIT_FSIZE, (40, 40))\n"  # as if full
        "run(sweep, 'runs')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "can no longer be written" in done.stderr
    assert "run the sweep again: it resumes" in done.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    assert run(sweep, points / "runs").states == {"done": 2}
    assert tallied(points)["1 0"] == 1


def test_points_of_other_machines_and_versions_are_marked(points: Path) -> None:
    sweep = of(grid=Grid(product={"n": [1, 2]}))
    run(sweep, points / "runs")
    done = points / "runs" / sweep.points[0].key / "DONE"
    recorded = json.loads(done.read_text())
    done.write_text(json.dumps(recorded | {"machine": "elsewhere", "versions": "workbench 0"}))
    notes = read_results(points / "runs").notes
    assert notes[0] == "2 done"
    assert any("2 machines" in note and "elsewhere (1)" in note for note in notes)
    assert any("2 versions" in note for note in notes)


def test_a_dry_run_runs_nothing_and_show_looks_at_any_moment(points: Path) -> None:
    (points / "mine.yaml").write_text(FILE)

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*CLI, *arguments], capture_output=True, text=True, check=False, timeout=120
        )

    dry = call("run", "mine.yaml", "--out", "runs", "--dry-run")
    assert (dry.returncode, "6 of 6 points would run" in dry.stderr) == (0, True)
    assert not (points / "runs").exists()
    shown = call("show", "mine.yaml", "--out", "runs", "--json")
    assert [row["state"] for row in json.loads(shown.stdout)] == ["waiting"] * 6
    assert call("show", "runs").returncode == 2
    unknown = call("run", "absent.yaml")
    assert (unknown.returncode, "No such file" in unknown.stderr) == (2, True)
    (points / "broken").mkdir()
    (points / "broken" / "1-0").write_text("1 / 0")
    ran = call("run", "mine.yaml", "--out", "runs", "--jobs", "3")
    assert ran.returncode == 1  # one point failed
    assert ran.stdout.split("\n")[0].split() == [
        "state", "n", "seed", "square", "seeded", "seconds", "detail"
    ]  # fmt: skip
    assert "[6/6]" in ran.stderr
    folder = call("show", "runs")
    assert (folder.returncode, folder.stdout.count("done")) == (0, 5)


def test_a_notebook_edited_while_the_sweep_runs_changes_none_of_its_points(points: Path) -> None:
    edit = (
        "path = Path('point.ipynb')\n"
        "path.write_text(path.read_text().replace('n * n,', '1000 * n,'))"
    )
    sweep = of(grid=Grid(product={"n": [2, 3]}), fixed={"do": edit})
    assert list(run(sweep, points / "runs").table["square"]) == [4, 9]
    assert "1000 * n" in (points / "point.ipynb").read_text()
    again = of(grid=Grid(product={"n": [2, 3]}), fixed={"do": edit})
    assert todo(again, SweepFolder(points / "runs"), resume=True, retry_failed=False) == [
        *again.points
    ]


@pytest.mark.parametrize(
    "written",
    [
        '{"huge": 1' + "0" * 400 + ', "long": 100000000000000000000, "true": true, "text": "x"}',
        '{"none": null, "empty": {}, "deep": {"value": {"value": 1}}, "a": 1, "a.low": 2}',
        '{"seconds": 7, "state": 8, "n": 9, "\\ud800": 1, "odd": {"value": 1, "median": 2}}',
        "[1, 2]", "[" * 99999, "", "{", "3",
    ],
)  # fmt: skip
def test_odd_metrics_and_parameters_cost_nothing(points: Path, written: str) -> None:
    """As a notebook could leave them; the folder is written as a sweep does it."""
    rows: list[dict[str, object]] = [{"n": 10**30}, {"n": 1, "label": "x"}]
    planned = of(grid=Grid(list=rows)).points
    place = SweepFolder(points / "runs")
    for point in planned:
        kept(place, point, written)
    found = results(planned, place)
    save_results(found, of(grid=Grid(list=rows)), place)
    read = pd.read_parquet(points / "runs" / "results.parquet")
    assert list(read["state"]) == ["done"] * 2
    assert list(read["seconds"]) == [0.5] * 2
    assert list(read["n"]) == [str(10**30), "1"]
    assert set(found.metrics) <= {*read.columns}
    assert found.shown.shape[0] == 2
    wanted = {"long": 1e20, "true": 1, "seconds measured": 7, "a": 1, "odd": 1}
    assert {name: read[name][0] for name in wanted if name in read} == {
        name: wanted[name] for name in wanted if name in read
    }
    assert not ({"huge", "text", "empty", "deep"} & {*read.dropna(axis="columns").columns})


@pytest.mark.filterwarnings("ignore:Glyph")
def test_nan_infinity_and_no_number_are_three_things_and_whole_numbers_stay_whole(
    points: Path,
) -> None:
    sweep = of(grid=Grid(list=[{"n": 1}, {"n": 2}, {"label": "\x1b[2J\n" * 9}]))
    place = SweepFolder(points / "runs")
    for point, written in zip(
        sweep.points,
        [
            '{"loss": {"value": "nan", "low": "-inf", "n": 7}, "count": 3}',
            '{"loss": "inf"}',
            '{"loss": null}',
        ],
        strict=True,
    ):
        kept(place, point, written)
    save_results(results(sweep.points, place), sweep, place)
    for table in (read_results(place.path).table, pd.read_parquet(place.path / "results.parquet")):
        loss = table["loss"]
        assert list(loss.isna()) == [False, False, True]
        assert (str(loss[0]), loss[1], loss[2]) == ("nan", float("inf"), pd.NA)
        assert table["loss.low"][0] == -float("inf")
        assert [str(table[name].dtype) for name in ("n", "count", "loss.n")] == ["Int64"] * 3
        assert averaged(table, "loss", ["n"])["failed"].tolist() == [1, 1, 1]
        _, axes = new_figure(2)
        plot_lines(axes[0], table, "n", "loss", "label")
        plot_pareto(axes[1], table, "count", "loss.n")
    text = pd.read_csv(place.path / "results.csv", dtype=str, keep_default_na=False)
    assert list(text["loss"]) == ["nan", "inf", ""]
    assert list(text["n"]) == ["1", "2", ""]
    assert list(text["count"]) == ["3", "", ""]
    assert sweep_report(place.path)

    shown = CliRunner().invoke(app, ["show", str(place.path)])
    assert "\x1b" not in shown.output
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert [row[:4] for row in rows[1:3]] == [
        ["done", "1", "nan", "3"],
        ["done", "2", "inf", "0.5"],
    ]
    assert rows[3] == ["done", "\\x1b[2J\\n" * 4 + "\\x1…", "0.5"]
    plain = json.loads(CliRunner().invoke(app, ["show", str(place.path), "--json"]).stdout)
    assert [row["loss"] for row in plain] == ["nan", "inf", None]
    assert [row["n"] for row in plain] == [1, 2, None]


def test_points_that_run_together_share_the_cores(
    points: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    sweep = of(
        grid=Grid(product={"n": [1, 2]}),
        fixed={"do": "Path(f'{n}.threads').write_text(os.environ['OMP_NUM_THREADS'])"},
    )
    assert run(sweep, points / "runs", jobs=2).states == {"done": 2}
    share = str(max(1, threads() // 2))
    assert [(points / f"{n}.threads").read_text() for n in (1, 2)] == [share, share]
    assert _shares(1) == {}
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert _shares(2) == {}


def test_a_module_that_changes_while_the_sweep_runs_ends_it(points: Path) -> None:
    (points / "helper.py").write_text("x = 1")
    text = (points / "point.ipynb").read_text()
    (points / "point.ipynb").write_text(text.replace("import json,", "import helper, json,"))
    edit = "Path('helper.py').write_text('x = 2')"
    sweep = of(grid=Grid(product={"n": [1, 2]}), fixed={"do": edit})
    with pytest.raises(InputError, match=r"helper.py has changed during"):
        run(sweep, points / "runs")
    assert read_results(points / "runs").states == {"waiting": 2}
    assert tallied(points) == {"1 0": 1}


def answered(points: Path, verdicts: dict[str, str], seeds: tuple[int, ...] = (0,)) -> Path:
    """A sweep's folder of done points; in their verdicts "x" is right and "!" has failed."""
    sweep = of(grid=Grid(product={"n": [1, 2, 3], "label": ["plain", "chat"]}, seeds=seeds))
    place = SweepFolder(points / "runs")
    for point in sweep.points:
        n, label, seed = (point.plain_parameters[name] for name in ("n", "label", "seed"))
        rows = [
            {"id": f"{i}", "answer": f"{i}", "correct": mark == "x",
             "error": "no answer" if mark == "!" else None}
            for i, mark in enumerate(verdicts.get(f"{n} {label} {seed}", "x" * 40))
        ]  # fmt: skip
        target = place.begin(point)
        (target / "out.ipynb").write_text("{}")
        (target / "result" / "metrics.json").write_text('{"accuracy": 1}')
        (target / "result" / "results").mkdir()
        if rows:
            pd.DataFrame(rows).to_csv(target / "result" / "results" / "rows.csv", index=False)
        record_end(place.of(point), "done", "", {"seconds": 0.5})
    found = results(sweep.points, place)
    save_results(found, sweep, place)
    return place.path


def test_points_are_compared_over_the_same_items(points: Path) -> None:
    first, better = "x." * 20, "!" + "xx." * 13
    folder = answered(points, {"1 plain 0": first, "2 plain 0": better})
    table = paired(folder, "n", "label")
    assert table[["label", "n", "versus"]].to_numpy().tolist() == [
        ["plain", 2, 1], ["chat", 2, 1], ["plain", 3, 1], ["chat", 3, 1],
    ]  # fmt: skip
    row = table.iloc[0]
    expected = paired_shares("", *([mark == "x" for mark in one[1:]] for one in (better, first)))
    assert (row["difference"], row["low"], row["high"]) == (
        expected.value, expected.low, expected.high,
    )  # fmt: skip
    assert (row["items"], row["n_failed"]) == (39, 1)
    assert table["difference"].tolist()[1] == 0
    assert table["low"].tolist()[1] < 0 < table["high"].tolist()[1]


def test_seeds_are_repeats_of_an_item(points: Path) -> None:
    verdicts = {"1 plain 0": "x..x" * 10, "1 plain 1": "...x" * 10, "2 plain 0": "xx.x" * 10}
    folder = answered(points, verdicts, seeds=(0, 1))
    row = paired(folder, "n", "label").iloc[0]
    gains = [0.5, 1, 0.5, 0] * 10  # the second seed of 2 has all right
    expected = mean("", gains, -1, 1)
    assert (row["difference"], row["low"], row["high"]) == pytest.approx(
        (expected.value, expected.low, expected.high)
    )
    alone = paired(folder, "seed")  # over all n and labels
    assert alone["versus"].tolist() == [0]


def test_what_was_not_kept_cannot_be_compared(points: Path) -> None:
    with pytest.raises(InputError, match="has no parameter 'm'"):
        paired(answered(points, {}), "m")
    folder = answered(points, {"3 chat 0": ""})
    with pytest.raises(InputError, match=r"no saved rows: .* save_table\(report.rows"):
        paired(folder, "n", "label")


@pytest.mark.parametrize("jobs", [0, -1, 1.5, True])
def test_jobs_must_be_a_number(points: Path, jobs: Any) -> None:
    with pytest.raises(InputError, match="jobs="):
        run(of(grid=Grid(product={"n": [1]})), points / "runs", jobs=jobs)


def test_what_is_no_sweeps_folder_is_refused(points: Path) -> None:
    with pytest.raises(InputError, match="is not a sweep's folder"):
        read_results(points)
    (points / "sweep.json").write_text('{"points": [{"key"')
    with pytest.raises(WorkbenchError, match="is broken"):
        read_results(points)


@pytest.mark.skipif(unavailable() is not None, reason="needs vLLM")
def test_points_of_one_configuration_share_a_server_that_is_ended(
    points: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = (
        "import urllib.request\nurl = os.environ['WORKBENCH_BASE_URL']\n"
        "print(json.load(urllib.request.urlopen(url + '/models'))['data'][0]['id'], engine)\n"
        "Path('urls').open('a').write(url + chr(10))"
    )
    grid = Grid(product={"n": [1, 2, 3]})
    sweep = replace(of(grid=grid, serve={}, fixed={"do": asked}), notebook=Path("model.ipynb"))
    lines: list[str] = []
    found = run(sweep, points / "runs", jobs=3, say=lines.append)
    assert found.states == {"done": 3}, list(found.table["detail"])
    assert len(set((points / "urls").read_text().split())) == 1
    assert lines[0] == "starting a server for the embedded model"
    assert list(found.table["engine"]) == ["remote"] * 3
    assert run(sweep, points / "runs", say=lines.append).states == {"done": 3}
    assert len(lines) == 4  # nothing to do, no server for it
    port = int((points / "urls").read_text().split(":")[2].split("/")[0])
    assert not [c for c in psutil.net_connections("tcp") if c.laddr.port == port
                and c.status == "LISTEN"]  # fmt: skip


def test_a_server_that_does_not_start_fails_its_points_and_no_others(points: Path) -> None:
    sweep = of(grid=Grid(product={"n": [1, 2]}), serve={"port": -1})
    sweep = replace(sweep, notebook=Path("model.ipynb"))
    found = run(sweep, points / "runs")
    assert found.states == {"failed": 2}
    assert "no server: port=-1: must be None or a whole number" in found.table["detail"][0]


def test_points_on_slurm_need_slurm(points: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs with it: tests/test_slurm_cluster.py."""
    monkeypatch.setenv("PATH", str(points))
    served = replace(of(serve={}), notebook=Path("model.ipynb"))
    with pytest.raises(InputError, match="workbench slurm serve"):
        run(served, points / "runs", executor=SlurmArray(SlurmJob("lab")))
    sweep = of(grid=Grid(product={"n": [1, 2]}))
    with pytest.raises(EngineUnavailableError, match="sbatch"):
        run(sweep, points / "runs", executor=SlurmArray(SlurmJob("lab")))
    assert read_results(points / "runs").states == {"waiting": 2}
    # A point that may still run there is not started here.
    place = SweepFolder(points / "runs")
    note_job(place.begin(sweep.points[0]), "7", 0)
    with pytest.raises(EngineUnavailableError, match="scancel"):
        run(sweep, points / "runs")
    assert not tallied(points)


def test_the_command_reads_what_slurm_is_asked_for(points: Path) -> None:
    (points / "mine.yaml").write_text(FILE)
    for given, message in [
        (["gpus=0"], "account=NAME"),
        (["account=lab", "gpu=1"], "gpu"),
        (["account"], "NAME=VALUE"),
    ]:
        line = ["run", "mine.yaml", "--dry-run", *(f"--slurm={one}" for one in given)]
        done = CliRunner().invoke(app, line)
        assert done.exit_code != 0
        assert message in done.output + str(done.exception)
