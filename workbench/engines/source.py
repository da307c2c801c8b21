"""Where a model is: its folder or its name on the hub, checked before a library reads it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from workbench import values
from workbench.engines.checkpoints.checks import check_folder, check_load_format, check_whole
from workbench.errors import InputError
from workbench.store import folder_digest
from workbench.tiny import DIFFUSION, MODEL

EMBEDDED = "workbench-tiny"  # the embedded model's name in `info`; it opens the model too
EMBEDDED_DIFFUSION = "workbench-tiny-diffusion"
OURS = {EMBEDDED: MODEL, EMBEDDED_DIFFUSION: DIFFUSION}
SMALL = 100 * 2**20  # bytes of weights


@dataclass(frozen=True, slots=True)
class Source:
    """A model's location; `name` is what the underlying library loads.

    Attributes:
        folder: its local folder; None for a name on the hub.
        shown: its name for people, which opens the same model again.
    """

    name: str
    folder: Path | None
    shown: str

    @classmethod
    def find(cls, model: str | None, default: str = EMBEDDED) -> Source:
        """Locate `model`; None is the embedded one. A GGUF file is converted once.

        Raises:
            InputError: a missing folder, a folder without a model, or a broken GGUF file.
            WorkbenchError: a GGUF file's folder cannot be written, or the libraries disagree on it.
        """
        model = default if model is None else model
        if model in OURS:
            return cls(str(OURS[model]), OURS[model], model)
        if model.lower().endswith(".gguf") and not (Path(model) / "config.json").exists():
            from workbench.engines.checkpoints.gguf import converted

            file = Path(model).expanduser()
            folder = converted(file)
            return cls(str(folder), folder, str(file.resolve()))
        path = _folder(model)
        name = str(path or model)
        return cls(name, path, name)

    @property
    def small(self) -> bool:
        """Whether it is like the embedded model, and runs best with the same settings."""
        files = list(self.folder.glob("*.safetensors")) if self.folder else []
        return bool(files) and sum(file.stat().st_size for file in files) < SMALL

    def check_causal(self) -> None:
        """Refuse a folder with a masked-diffusion model, for which other engines return nonsense.

        Raises:
            InputError: names the engine for it.
        """
        if self.folder is None:
            return
        config: object = None
        with suppress(OSError, ValueError):  # the loader reports broken files
            config = json.loads((self.folder / "config.json").read_text("utf-8"))
        kind = config if isinstance(config, dict) else {}
        if kind.get("is_causal") is False or kind.get("model_type") == "llada":
            raise InputError(
                f'model {self.shown!r} is a masked-diffusion model: use engine="diffusion"'
            )

    def check(
        self, options: Mapping[str, object], *, tokenizer: bool = True, whole: bool = False
    ) -> None:
        """Refuse a folder that is broken or unsafe to load, before a library reads it.

        Args:
            options: the engine's; `load_format` and `trust_remote_code` matter.
            tokenizer: whether the folder must have a tokenizer.
            whole: whether to check each tensor too, as vLLM does not.

        Raises:
            InputError: names the folder and what is wrong with it.
        """
        values.flag("trust_remote_code", options.get("trust_remote_code", False))
        form = options.get("load_format") or "auto"
        check_load_format(form)
        if self.folder is not None and (self.folder / "config.json").is_file():
            tokenizer = tokenizer and not options.get("trust_remote_code")
            check_folder(self.folder, load_format=form, tokenizer=tokenizer)
            if whole:
                check_whole(self.folder, form)

    def weights(self) -> str:
        """The identity of its weights: a digest of the folder, or the hub's name."""
        return folder_digest(self.folder) if self.folder else self.name


def _folder(name: str) -> Path | None:
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise InputError(f"model folder {name!r} has no config.json: not a Hugging Face model")
        return path.resolve()
    if path.exists() or path.is_absolute() or name.startswith(("./", "../", "~")):
        raise InputError(f"model folder {name!r} does not exist")
    return None


def check_options(options: Iterable[str], known: Iterable[str], engine: str) -> None:
    """Refuse an option that the engine does not have.

    Raises:
        InputError: names it and the nearest known one.
    """
    names = list(known)
    for name in options:
        if name not in names:
            hint = values.near(name, names) or f". Known: {', '.join(sorted(names))}"
            raise InputError(f"unknown option {name!r} for the {engine} engine{hint}")
