"""The notebooks in JupyterLab in a real browser, and how a conda user gets there.

With WORKBENCH_SCREENSHOTS set to a folder, the panel's test writes the README's pictures there.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import Request, urlopen

import psutil
import pytest
import yaml
from packaging.specifiers import SpecifierSet

from tools.notebooks.lint import WIDGET_VIEW
from workbench.engines.vllm import unavailable
from workbench.nb.execution import KERNEL

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page, Playwright

nbformat: Any = import_module("nbformat")

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SCREENSHOTS = os.environ.get("WORKBENCH_SCREENSHOTS")
QUICK = 20.0  # seconds; under 2 where nothing else runs
FOLDERS = {
    "JUPYTER_CONFIG_DIR": "config",
    "JUPYTER_DATA_DIR": "data",
    "JUPYTER_RUNTIME_DIR": "runtime",
    "JUPYTERLAB_SETTINGS_DIR": "settings",
    "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
    "IPYTHONDIR": "ipython",
}
BORDER = 3  # of the next cell, in pixels
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

needs_vllm = pytest.mark.skipif(unavailable() is not None, reason="needs vLLM")


@dataclass(frozen=True, slots=True)
class Lab:
    """A notebook folder in JupyterLab, and the browser's page on it."""

    page: Page
    url: str
    folder: Path
    key: str  # the header's

    def write(self, name: str, codes: list[str]) -> None:
        """Put a notebook there."""
        cells = [nbformat.v4.new_code_cell(code) for code in codes]
        kernel = {"name": KERNEL, "display_name": KERNEL, "language": "python"}
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
        nbformat.write(notebook, self.folder / name)

    def open(self, name: str) -> None:
        """Show a notebook and wait for its kernel."""
        self.page.goto(f"{self.url}/doc/tree/{name}")
        self.page.get_by_text(f"{KERNEL} | Idle").wait_for()

    def start(self, cell: int) -> None:
        """Run a code cell, as a person does."""
        self.page.locator(".jp-CodeCell .cm-content").nth(cell).click()
        self.page.keyboard.press("Shift+Enter")

    def ended(self, cell: int) -> None:
        """Wait until a code cell has run."""
        self.number(cell).wait_for(state="attached")

    def number(self, cell: int) -> Locator:
        """What stands beside a code cell that has run."""
        prompt = self.page.locator(".jp-CodeCell .jp-InputPrompt").nth(cell)
        return prompt.filter(has_text=re.compile(r"\d"))

    def run(self, cell: int) -> None:
        """Run a code cell to its end."""
        self.start(cell)
        self.ended(cell)

    def saved(self, name: str) -> Any:
        """The notebook as Ctrl-S leaves it."""
        address = f"{self.url}/api/contents/{name}"
        with self.page.expect_response(
            lambda reply: reply.request.method == "PUT" and reply.url.startswith(address)
        ):
            self.page.keyboard.press("Control+s")
        return nbformat.read(self.folder / name, as_version=4)

    def picture(self, name: str, first: str, cell: int) -> None:
        """Write a picture, from an element to the end of a code cell, if pictures are asked for."""
        if SCREENSHOTS is None:
            return
        self.page.mouse.move(0, 0)
        top = self.page.locator(first).bounding_box()
        bottom = self.page.locator(".jp-CodeCell").nth(cell).bounding_box()
        assert top is not None
        assert bottom is not None
        height = bottom["y"] + bottom["height"] - top["y"] - BORDER
        self.page.screenshot(
            path=Path(SCREENSHOTS) / f"{name}.png",
            clip={"x": top["x"], "y": top["y"], "width": top["width"], "height": height},
        )


def chromium(play: Playwright) -> str | None:
    """The system's browser; None is playwright's own one."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None and not Path(play.chromium.executable_path).exists():
        pytest.skip("needs a browser: .venv/bin/playwright install chromium")
    return found


@contextmanager
def jupyterlab(folder: Path, home: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A server on a folder, which shares nothing with the user's own: its address and its key.

    The key is a header, so that no address has it.
    """
    isolated = {name: str(home / place) for name, place in FOLDERS.items()}
    token = secrets.token_hex(16)
    env = os.environ | isolated | {"JUPYTER_TOKEN": token}
    for name in ("WORKBENCH_PROGRESS", "WORKBENCH_RUN_DIR"):
        env.pop(name, None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "workbench", "notebook", "lab", str(folder), "--no-browser",
        "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
    ]  # fmt: skip
    home.mkdir(parents=True)
    log = home / "log"
    with log.open("wb") as file:
        server = psutil.Popen(command, stdout=file, stderr=file, env=env)
    try:
        deadline = time.monotonic() + 120
        while not listens(port):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", {"Authorization": f"token {token}"}
    finally:
        if server.poll() is None:
            end(server)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def end(server: psutil.Popen) -> None:
    """The server and all its kernels, and what those have started."""
    family = [server, *server.children(recursive=True)]
    server.terminate()  # it ends its kernels
    _, left = psutil.wait_procs(family, timeout=30)
    for process in left:
        process.kill()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """JupyterLab on an empty folder."""
    from playwright.sync_api import sync_playwright

    folder, home = tmp_path / "notebooks", tmp_path / "home"
    folder.mkdir()
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium(play), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1080, "height": 1600}, device_scale_factor=1.4)
        page.set_default_timeout(180_000)
        with jupyterlab(folder, home) as (url, key):
            page.set_extra_http_headers(key)
            yield Lab(page, url, folder, key["Authorization"])
        browser.close()


OPEN = """\
from workbench import open_engine
from workbench.evaluation import evaluate
from workbench.panel import watch
from workbench.tasks import WordProblems

engine = open_engine(store="answers.sqlite")"""
WATCHED = "report = await watch(evaluate, WordProblems(), engine, count=4000)"
KEPT = """\
from pathlib import Path

from workbench import Sampling
from workbench.store import Store

print(len(Store(Path("answers.sqlite"))))
engine.generate(["12+30="], Sampling(max_tokens=2))[0].text"""
TAKEN = 'report.rows["from_store"].sum()'


@pytest.mark.slow
@needs_vllm
@pytest.mark.timeout(900)
def test_stop_in_a_long_cell_keeps_what_is_finished(lab: Lab) -> None:
    lab.write("long.ipynb", [OPEN, WATCHED, KEPT, WATCHED, TAKEN])
    lab.open("long.ipynb")
    lab.run(0)
    lab.start(1)
    lab.page.get_by_text(re.compile(r"[1-3],\d{3} of 4,000 rows")).wait_for()
    lab.picture("lab_panel", ".jp-NotebookPanel-toolbar", 1)
    begin = time.perf_counter()
    lab.page.locator(".jupyter-button", has_text="Stop").click()
    lab.ended(1)
    took = time.perf_counter() - begin
    print(f"the cell ended {took:.2f} s after the press")
    assert took < QUICK
    for cell in (2, 3, 4):
        lab.run(cell)
    lab.picture("lab_done", ".jp-CodeCell >> nth=3", 3)

    saved = lab.saved("long.ipynb")
    assert "widgets" not in saved.metadata
    assert WIDGET_VIEW not in nbformat.writes(saved)
    outputs = [cell.outputs for cell in saved.cells]  # Shift+Enter in the last one made another
    _, stopped, (kept, answer), (again, _), (taken,), _ = outputs
    table, figure, error = stopped
    assert set(table.data) == {"text/html", "text/plain"}
    assert set(figure.data) == {"image/png", "text/plain"}
    assert error.ename == "StoppedError"
    found = re.search(r"generate +([\d,]+) of 4,000 rows", table.data["text/plain"])
    assert found
    done = int(found[1].replace(",", ""))
    assert 1000 <= done < 4000
    assert kept.text == f"{done}\n"  # all that was finished, and no row more
    assert answer.data["text/plain"] == "'42'"
    assert "4,000 of 4,000 rows" in again.data["text/plain"]
    assert taken.data["text/plain"] == f"np.int64({done})"


def test_lab_asks_nothing_of_the_network(tmp_path: Path) -> None:
    (tmp_path / "notebooks").mkdir()
    with jupyterlab(tmp_path / "notebooks", tmp_path / "home") as (url, key):
        page = urlopen(Request(f"{url}/lab", headers=key)).read().decode()
        news, update = (
            json.load(urlopen(Request(f"{url}/lab/api/{name}", headers=key)))
            for name in ("news", "update")
        )
    data = page.partition('id="jupyter-config-data"')[2]
    config = json.loads(data.partition(">")[2].partition("<")[0])
    assert config["news"] == {"disabled": True}  # no question either
    assert (news, update) == ({"news": []}, {"notification": None})


@pytest.mark.slow
@needs_vllm
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_runs(lab: Lab, path: Path) -> None:
    shutil.copytree(path.parent, lab.folder, dirs_exist_ok=True)
    shutil.copy(ROOT / "pyproject.toml", lab.folder.parent)  # here is the project, for its runs
    notebook = nbformat.read(path, as_version=4)
    codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in codes:
        cell.outputs, cell.execution_count = [], None  # what is read later is of this run
    nbformat.write(notebook, lab.folder / path.name)
    lab.open(path.name)
    for item in ("Run", "Run All Cells"):
        lab.page.get_by_role("menuitem", name=item, exact=True).click()
    error = lab.page.locator('[data-mime-type="application/vnd.jupyter.error"]')
    end = lab.number(len(codes) - 1).or_(error).first
    end.wait_for(state="attached", timeout=600_000)
    codes = [cell for cell in lab.saved(path.name).cells if cell.cell_type == "code"]
    outputs = [output for cell in codes for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error"] == []
    assert [cell.execution_count for cell in codes] == [*range(1, len(codes) + 1)]


# --- the way there with conda ---


@pytest.fixture
def conda() -> dict[str, Any]:
    """What environment.yml says."""
    return dict(yaml.safe_load((ROOT / "environment.yml").read_text()))


def test_the_conda_environment_brings_what_setup_needs(conda: dict[str, Any]) -> None:
    names = {re.split(r"[=<> ]", item)[0]: item for item in conda["dependencies"]}
    assert {"python", "pip", "make"} <= names.keys()
    with (ROOT / "pyproject.toml").open("rb") as file:
        supported = SpecifierSet(tomllib.load(file)["project"]["requires-python"])
    assert names["python"].removeprefix("python=") in supported


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_lab_in_the_conda_environment(conda: dict[str, Any], tmp_path: Path) -> None:
    prefix = tmp_path / conda["name"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE") and k != "MFLAGS"}
    env["CONDA_PREFIX"] = str(prefix)
    command = ["make", "-n", "lab", f"PYTHON={sys.executable}", "VARIANT="]
    said = subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, text=True)
    setup, lab = said.stdout.splitlines()
    assert setup.startswith(f'{sys.executable} requirements/install.py --variant ""')
    assert lab == f'"{prefix / "bin" / "workbench"}" notebook lab notebooks'
