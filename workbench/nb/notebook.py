"""Read notebooks: find the files, load a valid one, inspect its cells.

`load` refuses a broken file by name, so that all later code can rely on the format.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from workbench import values
from workbench.errors import NotebookError
from workbench.files import file_error

PARAMETERS_TAG = "parameters"
INJECTED_TAG = "injected-parameters"
# Tags of cells that papermill adds to a copy.
PUT_IN = {INJECTED_TAG, "papermill-error-cell-tag"}
# Tags that Jupyter's own tools respect.
RAISES = "raises-exception"
SKIP = "skip-execution"
# Kernels that a notebook without a language may name.
OTHERS = re.compile(r"(ir|julia|bash|iruby|deno|xcpp|scala|octave|sas|stata|evcxr|rust)(-?[\d.]+)?")
# Cell magics whose body is Python.
WRAPS = re.compile(r"\s*%%(capture|time|prun)\b.*")


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell; `index` counts all cells of the notebook from 0."""

    index: int
    kind: str
    source: str
    count: int | None
    metadata: dict[str, Any]
    outputs: tuple[dict[str, Any], ...]

    @property
    def tags(self) -> tuple[str, ...]:
        """The cell's tags."""
        return tuple(self.metadata.get("tags", ()))

    @property
    def runs(self) -> bool:
        """Whether there is code, and it is to be sent to a kernel."""
        return self.has_code and SKIP not in self.tags

    @property
    def errors(self) -> list[dict[str, Any]]:
        """The errors in its outputs."""
        return [output for output in self.outputs if output["output_type"] == "error"]

    @property
    def has_code(self) -> bool:
        """Whether it is a code cell that is not empty."""
        return self.kind == "code" and bool(self.source.strip())


@dataclass(frozen=True, slots=True)
class Notebook:
    """A valid notebook of format 4; `minor` is the format's minor version."""

    path: Path
    minor: int
    metadata: dict[str, Any]
    cells: tuple[Cell, ...]

    @property
    def code(self) -> tuple[Cell, ...]:
        """The code cells that are not empty."""
        return tuple(cell for cell in self.cells if cell.has_code)

    @property
    def parameters(self) -> tuple[Cell, ...]:
        """The code cells tagged `parameters`; papermill uses the first."""
        return tuple(c for c in self.cells if c.kind == "code" and PARAMETERS_TAG in c.tags)


def find(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """Expand folders into their notebooks; refuse missing paths.

    Args:
        paths: Notebooks, or folders, whose notebooks are sorted by name.

    Raises:
        NotebookError: A path is missing or not a notebook, or no notebook is found.
    """
    notebooks: list[Path] = []
    for path in values.paths(paths):
        if path.is_dir():
            notebooks.extend(sorted(path.glob("[!.]*.ipynb")))  # without macOS's hidden files
        elif path.suffix == ".ipynb" and path.is_file():
            notebooks.append(path)
        else:
            raise NotebookError(
                f"{path} is not a notebook; give an .ipynb file or a folder of them"
            )
    if not notebooks:
        raise NotebookError("no notebooks; give .ipynb files or a folder that has some")
    return list(dict.fromkeys(notebooks))


def load(path: str | Path) -> Notebook:
    """Read and validate one notebook.

    Raises:
        NotebookError: The file cannot be read, is not valid against the notebook format, or is a
            notebook in another language than Python.
    """
    path, data = Path(path), read_notebook(path)
    _check_language(path, data["metadata"])
    return Notebook(
        path=path,
        minor=data["nbformat_minor"],
        metadata=data["metadata"],
        cells=tuple(
            Cell(
                index=index,
                kind=cell["cell_type"],
                source=joined(cell["source"]),
                count=cell.get("execution_count"),
                metadata=cell["metadata"],
                outputs=tuple(cell.get("outputs", ())),
            )
            for index, cell in enumerate(data["cells"])
        ),
    )


def _nbformat() -> Any:
    """Import nbformat without the seconds that jsonschema takes for a grammar of web addresses.

    The notebook format has no field that needs it.
    """
    if absent := "rfc3987_syntax" not in sys.modules:
        sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]  # so it is not found
    try:
        return import_module("nbformat")
    finally:
        if absent:
            del sys.modules["rfc3987_syntax"]


def read_notebook(path: str | Path) -> dict[str, Any]:
    """The valid data of a notebook of format 4; older formats are upgraded.

    Missing or invalid cell ids are repaired, because files of other programs often have them.

    Raises:
        NotebookError: The file cannot be read, or is not valid against the notebook format.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        data = json.loads(text)
        if isinstance(data, dict) and data.get("nbformat") in {1, 2, 3}:
            data = _nbformat().reads(text, as_version=4)
    except Exception as error:  # nbformat raises many kinds of errors for a broken old file
        raise NotebookError(
            f"{file_error(path, error)}; it cannot be read as a notebook: give one, or restore it"
        ) from error
    if not isinstance(data, dict) or data.get("nbformat") != 4:
        raise NotebookError(f"{path} is not a notebook of format 4; open and save it in Jupyter")
    _name_cells(data)
    if (wrong := next(iter(_nbformat().validator.iter_validate(data)), None)) is not None:
        message = str(wrong).splitlines()[0]
        raise NotebookError(f"{path} is not a valid notebook: {message}; repair or restore it")
    return data


def prepared(path: Path, parameters: str = "") -> str:
    """The text of a notebook that is ready to run: without earlier outputs, with these values.

    Args:
        path: The notebook, which is not changed.
        parameters: The source of a cell that sets values; it replaces one that an earlier run has
            added. Empty: no such cell.

    Raises:
        NotebookError: the cell would change in the file.
    """
    nbformat = _nbformat()
    notebook = nbformat.v4.upgrade(nbformat.from_dict(read_notebook(path)))
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    if parameters:
        cells = [cell for cell in notebook.cells if not _is_injected(cell)]
        place = next(i for i, cell in enumerate(cells) if _is_tagged(cell, PARAMETERS_TAG))
        cell = nbformat.v4.new_code_cell(parameters, metadata={"tags": [INJECTED_TAG]})
        notebook.cells = [*cells[: place + 1], cell, *cells[place + 1 :]]
    text: str = nbformat.writes(notebook)
    written = [joined(c["source"]) for c in json.loads(text)["cells"] if _is_injected(c)]
    if parameters and written != [parameters]:
        raise NotebookError(f"{path}: {parameters!r:.200} cannot be given unchanged")
    return text


def _is_tagged(cell: dict[str, Any], tag: str) -> bool:
    return cell["cell_type"] == "code" and tag in cell["metadata"].get("tags", ())


def _is_injected(cell: dict[str, Any]) -> bool:
    return _is_tagged(cell, INJECTED_TAG) and not _is_tagged(cell, PARAMETERS_TAG)


def _name_cells(data: dict[str, Any]) -> None:
    cells: Any = data.get("cells")
    taken = set[str]()
    for number, cell in enumerate(cells if isinstance(cells, list) else ()):
        if not isinstance(cell, dict):
            return
        if data.get("nbformat_minor", 0) < 5:
            cell.pop("id", None)
            continue
        if cell.get("id", "") in {"", *taken}:
            cell["id"] = f"cell-{number}-{len(cells)}"
        taken.add(str(cell["id"]))


def _check_language(path: Path, metadata: dict[str, Any]) -> None:
    spec = metadata.get("kernelspec", {})
    named = OTHERS.fullmatch(str(spec.get("name", "")))
    language = str(
        metadata.get("language_info", {}).get("name")
        or spec.get("language")
        or (named and named.group(1))
        or "python"
    )
    if "python" not in language.lower():
        raise NotebookError(
            f"{path} is a notebook of {language} (kernel {spec.get('name')!r}); only those of "
            "Python can be run here: use papermill with that kernel"
        )


def joined(text: str | list[str]) -> str:
    """Text that the file may store as one string or as a list of lines."""
    return text if isinstance(text, str) else "".join(text)


def statements(source: str) -> list[ast.stmt] | None:
    """Parse a cell as Python, with line magics blanked; None if it is not Python."""
    blanked = "\n".join(
        "" if line.startswith(("%", "!", "?")) and not line.startswith("%%") else line
        for line in source.splitlines()
    )
    for text in (source, blanked):
        if (body := _parsed(text)) is not None:
            return body
    unwrapped = WRAPS.sub("", source, count=1)
    if unwrapped.lstrip().startswith("%%"):
        return None
    syntax: Any = import_module("IPython.core.inputtransformer2").TransformerManager()
    return _parsed(syntax.transform_cell(unwrapped))


def _parsed(text: str) -> list[ast.stmt] | None:
    flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    try:
        tree = compile(text, "cell", "exec", flags=flags)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return tree.body if isinstance(tree, ast.Module) else None
