"""`workbench new`, `notebook copy`, `notebook lab`: starter notebooks, and JupyterLab."""

from __future__ import annotations

import filecmp
import importlib.util
import json
import os
import re
import shutil
import sys
from itertools import takewhile
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from typer import Argument, Context, Option

from workbench.cli.output import say
from workbench.errors import InputError
from workbench.files import write_whole

TEMPLATE = "10_your_own_data"
"""The package's notebook, with questions and a sweep, that a new one is copied from."""
ITS_NAME = re.compile(r"(?:10_)?your[_ ]own[_ ]data", re.IGNORECASE)
LAST = "## What we learn\n"
QUIET = (
    "--LabApp.news_url=None",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--LabApp.extension_manager=readonly",
)
"""Switches off JupyterLab's requests to the network: news, updates, extensions."""
SETTINGS = Path(__file__).with_name("lab")
"""Defaults of JupyterLab's settings, so that its page does not ask whether to fetch news."""
SKIPPED = ("__pycache__", ".ipynb_checkpoints", "runs")

Lab = Annotated[bool, Option("--lab", help="Open them in JupyterLab.")]


def new(
    name: Annotated[str, Argument(help="Of the notebook, such as mine or work/mine.")],
    lab: Lab = False,
) -> None:
    """Make a notebook for your own questions, with a sweep file and some rows to begin with."""
    from workbench.runs import shipped_notebooks

    place = Path(name).expanduser()
    if place.suffix == ".ipynb":
        place = place.with_suffix("")
    if not re.fullmatch(r"\w[\w-]*", place.name) or name.endswith("/"):
        raise InputError(
            f"{name!r} is not a notebook's name: give letters, digits, _ and -, such as mine or "
            "work/mine"
        )
    found = sorted(shipped_notebooks().glob(f"{TEMPLATE}.*"))
    targets = [place.with_name(place.name + template.suffix) for template in found]
    for target in targets:
        if target.exists() or target.is_symlink():
            raise InputError(f"{target} exists already: choose another name, or move it away")
    for template, target in zip(found, targets, strict=True):
        text = ITS_NAME.sub(place.name, template.read_text(encoding="utf-8"))
        write_whole(target, _unused(text) if target.suffix == ".ipynb" else text)
        typer.echo(target)
    say(f"run it: workbench notebook run {place}.ipynb --out runs/{place.name}")
    say(f"vary it: workbench sweep run {place}.yaml")
    if lab:
        open_lab(place.with_suffix(".ipynb"))


def _unused(text: str) -> str:
    """The package's notebook without outputs and findings, with the default store."""
    notebook = json.loads(text)
    notebook["cells"] = [*takewhile(lambda cell: cell["source"][:1] != [LAST], notebook["cells"])]
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"execution_count": None, "outputs": []}
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    return text.replace(r"store: str = \"\"", r"store: str = \"default\"")


def copy(
    folder: Annotated[Path, Argument(help="The destination; created if missing.")] = Path(
        "notebooks"
    ),
    lab: Lab = False,
) -> None:
    """Copy the notebooks and sweeps of the package, to run and change them."""
    from workbench.runs import shipped_notebooks

    source = shipped_notebooks()
    names = [
        path.relative_to(source) for path in sorted(source.rglob("*"))
        if path.is_file() and not {*SKIPPED} & {*path.relative_to(source).parts}
    ]  # fmt: skip
    if not names:
        raise InputError(f"{source} holds no notebooks: install workbench again")
    there = [one for one in names if (folder / one).exists()]
    changed = [one for one in there if not filecmp.cmp(source / one, folder / one, shallow=False)]
    if changed:
        raise InputError(
            f"{folder / changed[0]} has been changed ({len(changed)} of these files): choose "
            "another folder, or move it away"
        )
    for one in names:
        if one not in there:
            (folder / one).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / one, folder / one)
    typer.echo(f"{len(names) - len(there)} files in {folder}; {len(there)} were there")
    if lab:
        open_lab(folder)


def lab(
    context: Context, place: Annotated[Path, Argument(help="A folder or a notebook.")] = Path()
) -> None:
    """Open JupyterLab without requests to the network; further options are Jupyter's."""
    open_lab(place, *context.args)


def open_lab(place: Path, *options: str) -> NoReturn:
    """Replace this process with JupyterLab, in a folder or at a notebook.

    Raises:
        InputError: the place does not exist, or JupyterLab is not installed.
    """
    from workbench.machine import install_hint

    if not place.exists():
        raise InputError(f"{place}: no such file or folder; give a folder or a notebook")
    if importlib.util.find_spec("jupyterlab") is None:
        raise InputError(f"JupyterLab is not installed: {install_hint('lab')}")
    where = f"--notebook-dir={place}" if place.is_dir() else str(place)
    sys.stdout.flush()
    folders = [str(SETTINGS), os.environ.get("JUPYTER_CONFIG_PATH", "")]
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(filter(None, folders))
    os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", *QUIET, where, *options])
