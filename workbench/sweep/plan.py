"""A sweep: a notebook, a grid and fixed parameters, checked before anything runs.

Every point has a key, a digest of all that determines its result: the notebook's code, the
parameters, this package's version, the model and the files next to the notebook. So a result of
another notebook or model is never used for this sweep.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from workbench import __version__, values
from workbench.engines import URL
from workbench.engines.source import OURS, Source
from workbench.errors import InputError, NotebookError
from workbench.files import at_key, file_error
from workbench.nb.execution import KERNEL, TIMEOUT, require_kernel
from workbench.nb.literals import source_of
from workbench.nb.notebook import Notebook, load
from workbench.nb.parameters import default, resolve
from workbench.serving.presets import arguments, find_preset
from workbench.store import digest
from workbench.sweep.dependencies import NotebookFiles
from workbench.sweep.grid import Grid, Random, check_mapping, listed

TAKEN = ("key", "state", "detail", "seconds", "ended", "machine", "versions", "commit")
SERVE = "serve."  # prefix of a name that is an option of the server, not a parameter


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """A point that can run.

    Attributes:
        key: names its folder.
        parameters: the notebook's parameters, of the right types.
        served: the server's model and options, None if the notebook loads the model itself.
        rests: what the key is made of besides the parameters: notebook, version, model, files.
        uncovered: what may affect the result but is not in the key.
    """

    key: str
    parameters: Mapping[str, object]
    served: Mapping[str, object] | None
    rests: Mapping[str, str | None]
    uncovered: tuple[str, ...] = ()

    @property
    def row(self) -> dict[str, object]:
        """Its values as shown in a table."""
        options = {SERVE + k: v for k, v in (self.served or {}).items() if k != "model"}
        return {**self.plain_parameters, **options}

    @property
    def plain_parameters(self) -> dict[str, object]:
        """The parameters as JSON values; what JSON lacks, such as a tuple, as its source."""
        return _plain_values(self.parameters)

    def record(self) -> dict[str, Any]:
        """The content of the point's `params.json`."""
        return {"parameters": self.plain_parameters, "served": self.served, "rests": self.rests}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The definition of a sweep.

    Attributes:
        notebook: has a typed `parameters` cell, and saves its numbers with `runs.save_metrics`.
        name: of the folder with the results.
        grid: what varies. A name that begins with `serve.` is an option of the server.
        fixed: parameters with the same value in all points.
        serve: options of a vLLM server. All points with the same model and options use one server
            and do not load the model themselves. None: no server.
        timeout: seconds per point.
        kernel: the Jupyter kernel's name.

    Raises:
        InputError: a name or value is invalid.
    """

    notebook: Path
    name: str
    grid: Grid = field(default_factory=Grid)
    fixed: Mapping[str, object] = field(default_factory=dict)
    serve: Mapping[str, object] | None = None
    timeout: float = TIMEOUT
    kernel: str = KERNEL

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"\w[\w.-]{0,99}", self.name):
            raise InputError(
                f"name={self.name!r}: give the name of a folder, of letters, digits and .-_"
            )
        values.real("timeout", self.timeout, 0, 1e9, above=True)
        values.text("kernel", self.kernel)
        check_mapping("fixed", self.fixed)
        check_mapping("serve", self.serve if self.serve is not None else {})

    @classmethod
    def read(cls, path: str | Path) -> Sweep:
        """A sweep from a YAML file, whose keys are the attributes of this class and of `Grid`.

        The notebook's path is relative to the file. The default name is the file's.

        Raises:
            InputError: the file cannot be read, or has an unknown key.
        """
        path = Path(path)
        text, settings = _yaml(path)
        parts = [one.name for one in fields(Grid)]
        own = [one.name for one in fields(cls) if one.name != "grid"]
        if not isinstance(settings.get("notebook"), str):
            raise InputError(f"{path}: give the notebook, as `notebook: NAME.ipynb`")
        try:
            for name in settings:
                values.known("sweep key", name, own + parts)
            grid = {name: settings[name] for name in parts if settings.get(name) is not None}
            if type(seeds := grid.get("seeds")) is int and seeds > 0:
                grid["seeds"] = range(seeds)
            if "random" in grid:
                grid["random"] = Random.read(grid["random"])
            chosen = {name: settings[name] for name in own if name in settings}
            chosen["notebook"] = path.parent / settings["notebook"]
            chosen["fixed"] = settings.get("fixed") or {}
            if isinstance(settings.get("serve"), bool):
                chosen["serve"] = {} if settings["serve"] else None
            return cls(**{"name": path.stem, **chosen, "grid": Grid(**grid)})
        except (InputError, TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{at_key(path, text, str(error))}: {error}") from error

    @cached_property
    def points(self) -> tuple[SweepPoint, ...]:
        """All points, those of one server next to each other.

        Raises:
            NotebookError: the notebook, its kernel or a value is unusable, or no parameters cell.
            InputError: the grid has no points, a condition names what does not vary, the model's
                folder is not a model, or a file next to the notebook cannot be read.
        """
        require_kernel(self.kernel)
        notebook = self._loaded
        if not notebook.parameters:
            raise NotebookError(f"{notebook.path} has no cell tagged `parameters` to be varied")
        self.grid.check_where(self.fixed)
        grid = self.grid.points
        rows = [{**self.fixed, **point} for point in grid]
        varied = {name for point in grid for name in point}
        for name in [*varied, *self.fixed]:
            if name in TAKEN or (name in varied and name in self.fixed):
                why = "is a column of every table" if name in TAKEN else "is fixed too"
                raise InputError(f"{name!r} cannot be varied: it {why}")
        code = code_digest(notebook)
        models: dict[str, str | None] = {}  # the digest of a folder takes a while
        planned = [self._planned(code, row, models) for row in rows]
        unique = {one.key: one for one in planned}.values()
        ranks = {repr(one.served): rank for rank, one in reversed([*enumerate(unique)])}
        return tuple(sorted(unique, key=lambda one: ranks[repr(one.served)]))

    @cached_property
    def _loaded(self) -> Notebook:
        return load(self.notebook)

    @cached_property
    def _defaults(self) -> Mapping[str, object]:
        return {name: default(self._loaded, name) for name in ("model", "base_url")}

    @cached_property
    def beside(self) -> NotebookFiles:
        """The files that the key covers, in their state when the points are first requested."""
        return NotebookFiles(self._loaded, self._defaults["model"])

    def _planned(
        self, code: str, row: Mapping[str, object], models: dict[str, str | None]
    ) -> SweepPoint:
        options = {n.removeprefix(SERVE): v for n, v in row.items() if n.startswith(SERVE)}
        given = {name: value for name, value in row.items() if not name.startswith(SERVE)}
        if options and self.serve is None:
            raise InputError(f"{SERVE}{next(iter(options))} is given without `serve:`: add it")
        if self.serve is not None and given.setdefault("engine", "remote") != "remote":
            raise InputError(
                f"engine={given['engine']!r}: with `serve:` it is remote; leave it out"
            )
        parameters = resolve(self._loaded, given)
        model = parameters.get("model", self._defaults["model"])
        place = located(self.notebook.parent, model)
        served = None if self.serve is None else _served(model, place, {**self.serve, **options})
        if repr(model) not in models:
            models[repr(model)] = _revision(place)
        rests = {"notebook": code, "version": __version__, "model": models[repr(model)]}
        files, others = self.beside.named_by(parameters)
        if files:  # without files the key stays that of older results
            rests["files"] = files
        try:
            key = digest(
                sorted(_plain_values(parameters).items()), served, rests, self.kernel
            ).hex()[:12]
        except (TypeError, ValueError) as error:
            raise InputError(f"{listed(row)}: {error}; give numbers, texts and lists") from error
        return SweepPoint(key, parameters, served, rests, (*others, *self._server(parameters)))

    def _server(self, parameters: Mapping[str, object]) -> Sequence[str]:
        """What answers, if it is an external server, whose model is unknown here."""
        if parameters.get("base_url", self._defaults["base_url"]):
            return ("what the server at base_url serves",)
        others = self.serve is None and os.environ.get(URL)
        return (f"what the server at {URL} serves",) if others else ()


def _plain_values(parameters: Mapping[str, object]) -> dict[str, object]:
    pairs = parameters.items()
    return {name: value if _is_json(value) else source_of(value) for name, value in pairs}


def _is_json(value: object) -> bool:
    """Whether JSON returns the same value; it has no tuples, no sets, and only text as keys."""
    try:
        return source_of(json.loads(json.dumps(value))) == source_of(value)
    except (TypeError, ValueError):
        return False


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-3 is a number and a duplicate key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice[0]!r} is given twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _yaml(path: Path) -> tuple[str, dict[str, Any]]:
    """The text of a file, and its content."""
    try:
        text = path.read_text(encoding="utf-8")
        found = yaml.load(text, _Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}" if mark else path
        what = " ".join(filter(None, (error.context, error.problem)))
        raise InputError(f"{place}: not valid YAML: {what}; correct the file") from error
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        what = " ".join(file_error(path, error).split())
        raise InputError(f"{what}; give a YAML file with `notebook:` and what varies") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: not a sweep: give `notebook:` and what varies")
    return text, found


def located(folder: Path, model: object) -> str | None:
    """The name under which a model is found; for one in the notebook's folder its full path."""
    if not isinstance(model, str):
        return None
    with suppress(OSError, ValueError):  # not a possible file name
        if model and model not in OURS and (folder / model).exists():
            return str(folder.absolute() / model)
    return model


def _revision(model: str | None) -> str | None:
    """The identity of a model's weights: a digest, or the commit that a hub name resolves to here.

    None if the notebook names no model.
    """
    if model is None:
        return None
    try:
        source = Source.find(model or None)
        if source.folder is not None:
            return source.weights()
        return f"{model}@{_commit(model)}"
    except (OSError, ValueError) as error:
        raise InputError(f"model={model!r:.100} is not a folder or hub name: {error}") from error


def _commit(model: str) -> str:
    """The commit of a hub name: the downloaded one, or else the hub's current one."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.file_download import repo_folder_name

    kept = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=model, repo_type="model"))
    try:
        return (kept / "refs" / "main").read_text().strip()
    except OSError:
        pass
    try:
        return str(HfApi().model_info(model, timeout=10).sha)
    except ValueError:  # not a possible name of a model
        raise
    except Exception:  # noqa: BLE001  # no network or a private model: the point will report it
        return "unknown"


def code_digest(notebook: Notebook) -> str:
    """A digest of a notebook's code; its texts and outputs do not count."""
    return digest([(cell.source, cell.tags) for cell in notebook.code]).hex()[:12]


def _served(model: object, place: str | None, options: Mapping[str, Any]) -> dict[str, object]:
    """The server's model and options, checked.

    Raises:
        InputError: an option is unknown, invalid or secret.
    """
    settings = {n: v for n, v in options.items() if n not in {"host", "port", "timeout"}}
    try:
        if refused := {"model", "log", "host"} & {*options}:
            raise InputError(f"serve: {refused.pop()} cannot be given: the sweep sets it")
        source = Source.find(place or None)
        preset = find_preset(settings.pop("preset", None), settings)
        arguments(source, preset, settings)
    except (TypeError, ValueError) as error:
        raise InputError(f"serve: {options!r:.100}: {error}") from error
    return {"model": model or None, **dict(sorted(options.items()))}
