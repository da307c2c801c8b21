"""The package without a clone: what it says to install, and where its notebooks are."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from stranger import Asked, Said, Stranger, choice, prompts_of, reply

import workbench
from workbench import machine, runs

CLONE = Path(workbench.__file__).parent.parent
PIP = 'pip install "workbench-lm[{}]"'
INDEX = f" --extra-index-url {machine.CPU_TORCH}"


@pytest.mark.parametrize(
    ("here", "part", "hints"),
    [
        (("Linux", "x86_64", None), "", ("make setup VARIANT=cpu", PIP.format("cpu") + INDEX)),
        (("Linux", "x86_64", "/bin/nvidia-smi"), "",
         ("make setup VARIANT=cuda", PIP.format("cuda"))),
        (("Linux", "aarch64", None), "", (PIP.format("transformers"),) * 2),
        (("Darwin", "arm64", None), "", (PIP.format("transformers"),) * 2),
        (("Linux", "x86_64", None), "lab", (PIP.format("lab"),) * 2),
    ],
)  # fmt: skip
def test_the_hint_is_a_command_for_this_machine(
    monkeypatch: pytest.MonkeyPatch,
    here: tuple[str, str, str | None],
    part: str,
    hints: tuple[str, str],
) -> None:
    system, processor, driver = here
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("platform.machine", lambda: processor)
    monkeypatch.setattr("shutil.which", lambda _: driver)
    assert machine.install_hint(part) == hints[0]
    monkeypatch.setattr(machine, "checkout", lambda: None)
    assert machine.install_hint(part) == hints[1]


def test_an_environment_inside_a_project_does_not_lend_its_commit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert runs.commit() is not None
    assert (runs.shipped_notebooks() / "01_quickstart.ipynb").is_file()
    monkeypatch.setattr(runs, "checkout", lambda: None)
    assert runs.commit() is None
    assert runs.shipped_notebooks() == Path(runs.__file__).parent / "_notebooks"


# --- the wheel ---

ALONE = """
import sys
from importlib.machinery import PathFinder

class Base(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in HEAVY else super().find_spec(name, path, target)

sys.meta_path = [Base if finder is PathFinder else finder for finder in sys.meta_path]
sys.path.insert(0, PLACE)

import workbench as wb
from workbench.runs import commit, shipped_notebooks

assert wb.__file__.startswith(PLACE), wb.__file__
assert commit() is None  # no clone's, although the current folder is one
print(len(list(shipped_notebooks().glob("*.ipynb"))))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return Path(next(WheelBuilder(str(CLONE)).build(directory=str(folder), versions=["standard"])))


def heavy() -> set[str]:
    """The modules of all that only extras bring."""
    extras = tomllib.loads((CLONE / "pyproject.toml").read_text())["project"]
    named = [one for part in ("transformers", "cpu", "lab", "gguf")
             for one in extras["optional-dependencies"][part]]  # fmt: skip
    names = {re.split(r"[\[<>=]", one)[0] for one in named} - {"workbench-lm", "intel-openmp"}
    return {name.removesuffix("-cpu") for name in names}


def alone(wheel: Path, folder: Path, code: str) -> str:
    """What a program prints in an interpreter that has the wheel unpacked and no heavy package."""
    place = folder / "site"
    if not place.exists():
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(place)
    program = f"HEAVY, PLACE = {heavy()}, {str(place)!r}\n{ALONE}{code}"
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=CLONE, env=variables | {"PYTHONSAFEPATH": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_the_notebooks_the_kernel_and_the_models(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
        data = f"{wheel.name.rsplit('-', 3)[0]}.data/data"
        kernel = json.loads(packed.read(f"{data}/share/jupyter/kernels/workbench/kernel.json"))
        about = packed.read(f"{wheel.name.rsplit('-', 3)[0]}.dist-info/METADATA").decode()
    ours = {path.relative_to(CLONE).as_posix() for path in (CLONE / "notebooks").rglob("*.ipynb")}
    ours |= {path.relative_to(CLONE).as_posix() for path in (CLONE / "notebooks").rglob("*.yaml")}
    ours |= {path.relative_to(CLONE).as_posix() for path in (CLONE / "notebooks").glob("*.csv")}
    ours = {name for name in ours if ".ipynb_checkpoints" not in name}
    assert {name for name in names if "_notebooks/" in name} == {f"workbench/_{n}" for n in ours}
    assert {"workbench/py.typed", "workbench/tiny/model/model.safetensors"} <= names
    assert not [name for name in names if name.split("/")[0] not in ("workbench", data[:-5])
                and ".dist-info/" not in name]  # fmt: skip
    assert kernel["argv"][0] == "python"  # which Jupyter takes for that of its own environment
    assert (kernel["display_name"], kernel["env"]["VLLM_NO_USAGE_STATS"]) == ("workbench", "1")
    assert f"Name: {machine.DISTRIBUTION}\n" in about
    assert f"Version: {workbench.__version__}\n" in about


def test_all_but_the_heavy_modules_import_in_a_base_install(wheel: Path, tmp_path: Path) -> None:
    code = """
import importlib, pkgutil
for module in pkgutil.walk_packages(wb.__path__, "workbench."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except Exception as error:
            print(module.name, type(error).__name__)
"""
    lines = alone(wheel, tmp_path, code).splitlines()
    assert lines[0] == str(len(list((CLONE / "notebooks").glob("*.ipynb"))))
    assert lines[1:] == ["workbench.nb.validate NotebookError",
                         "workbench.serving.routes ModuleNotFoundError"]  # fmt: skip


def test_a_base_install_measures_a_model_behind_an_api(wheel: Path, tmp_path: Path) -> None:
    def says(asked: Asked) -> Said | None:
        if asked.method == "GET":
            return None
        return Said(reply(*(choice("#### 42", i) for i, _ in enumerate(prompts_of(asked.body)))))

    code = """
import pandas as pd

engine = wb.open_engine(base_url={url!r}, store=None)
print(engine.generate(["12+30="], wb.Sampling(max_tokens=8))[0].text)
task = wb.open_task(pd.DataFrame({{"question": ["6*7", "1+1"], "answer": ["42", "2"]}}))
report = wb.evaluate(task, engine, style="completion")
report.save({out!r})
print(report.summary[0].value)
try:
    wb.open_engine(engine="transformers", store=None)
except Exception as error:
    print(error)
print(sorted(HEAVY & set(sys.modules)))
"""
    hint = PIP.format("transformers")
    with Stranger(says) as server:
        told = alone(wheel, tmp_path, code.format(url=server.url, out=str(tmp_path / "report")))
    assert told.splitlines()[1:] == [
        "#### 42",
        "0.5",
        f"transformers: transformers is not installed; install it with {hint}",
        "[]",
    ]
    assert (tmp_path / "report" / "rows.parquet").is_file()
