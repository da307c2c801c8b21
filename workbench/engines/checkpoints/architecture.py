"""Models of any size without weights, to measure how fast a real one would run.

An `Architecture` has the shapes of a Llama: a preset, or a JSON file with Hugging Face's names.
`dummy_model` writes it as a model folder with the embedded model's tokenizer and no weights, which
`open_engine(str(folder), load_format="dummy")` fills with random numbers. The generated text is
noise: most of its token ids exceed the tokenizer's and print as nothing.
"""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from workbench import values
from workbench.errors import InputError
from workbench.files import at_key, file_error, whole_folder
from workbench.store import default_path, digest
from workbench.tiny import MODEL

SHAPES = Path(__file__).parent / "shapes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Shapes of a `LlamaForCausalLM`, with the names of its `config.json`.

    Attributes:
        num_key_value_heads: fewer than `num_attention_heads` is grouped-query attention.
        vocab_size: rows of the embedding; at least the embedded tokenizer's vocabulary.
        max_position_embeddings: the context length. An engine reserves room for one request of that
            length, and speed does not depend on it. So the default is less than Llama 3's 131072.
        head_dim: size of a head; None is `hidden_size / num_attention_heads`. vLLM supports 32,
            64, 80, 96, 112, 128, … on a CPU, and usually multiples of 8 on a GPU.
        tie_word_embeddings: whether the output layer is the embedding.

    Raises:
        InputError: a value is out of its range, or two values do not match.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    max_position_embeddings: int = 8192
    head_dim: int | None = None
    tie_word_embeddings: bool = False
    rope_theta: float = 500_000.0

    def __post_init__(self) -> None:
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if name == "tie_word_embeddings":
                value = values.flag(name, value)
            elif name == "rope_theta":
                number = values.real(name, value, 0, values.LARGEST, above=True)
                value = value if isinstance(value, int) else number  # int if it was written so
            elif name != "head_dim" or value is not None:
                value = values.whole(name, value, 1)
            object.__setattr__(self, name, value)  # int or float, not NumPy's
        heads, shared = self.num_attention_heads, self.num_key_value_heads
        if self.head_dim is None and self.hidden_size % heads:
            raise InputError(
                f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads={heads}: "
                "change one of them, or set head_dim"
            )
        if self._head % 2:
            raise InputError(
                f"head_dim={self._head} is odd, and rotary embeddings turn pairs: "
                "set an even head_dim, or other hidden_size and num_attention_heads"
            )
        if heads % shared:
            raise InputError(
                f"num_attention_heads={heads} is not a multiple of num_key_value_heads={shared}: "
                "each key-value head serves the same number of heads"
            )
        if self.vocab_size < _tokenizer_size():
            raise InputError(
                f"vocab_size={self.vocab_size} is too small for the embedded tokenizer: "
                f"use at least {_tokenizer_size()}"
            )

    @classmethod
    def load(cls, name_or_path: str | Path) -> Architecture:
        """A preset by name, or the shapes in a JSON file (`./name` if it lacks `.json`).

        Raises:
            InputError: an unknown preset, an unreadable file or one without a JSON object, a
                missing or unknown key, or a wrong value.
        """
        path = _locate(name_or_path)
        try:
            text = path.read_text(encoding="utf-8")
            shapes = json.loads(text)
        except (OSError, ValueError, RecursionError) as error:
            known = ", ".join(presets())
            raise InputError(
                f"{file_error(path, error)}; the file needs a JSON object, or use one of {known}"
            ) from error
        try:
            _check_keys(shapes)
            return cls(**shapes)
        except InputError as error:
            raise InputError(f"{at_key(path, text, str(error))}: {error}") from error

    @property
    def parameters(self) -> int:
        """Exact number of parameters; a tied embedding counts once."""
        width, head = self.hidden_size, self._head
        attention = 2 * width * head * (self.num_attention_heads + self.num_key_value_heads)
        feed_forward = 3 * width * self.intermediate_size
        layer = attention + feed_forward + 2 * width  # and two norms
        embeddings = (1 if self.tie_word_embeddings else 2) * self.vocab_size * width
        return embeddings + self.num_hidden_layers * layer + width

    @property
    def _head(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def _files(self) -> dict[str, str]:
        """Names and texts of the model folder's files."""
        config = _embedded("config.json") | asdict(self) | {"head_dim": self._head}
        theta = config.pop("rope_theta")
        config["rope_parameters"] = {"rope_theta": theta, "rope_type": "default"}
        # Without it, transformers warns of each text longer than the embedded model's context.
        tokenizer = {"model_max_length": self.max_position_embeddings}
        return {
            "config.json": json.dumps(config, indent=1) + "\n",
            "generation_config.json": _text("generation_config.json"),
            "tokenizer.json": _text("tokenizer.json"),
            "tokenizer_config.json": json.dumps(_embedded("tokenizer_config.json") | tokenizer),
        }


def presets() -> tuple[str, ...]:
    """Names of the architectures in the package."""
    return tuple(sorted(path.stem for path in SHAPES.glob("*.json")))


def dummy_model(name_or_path: str | Path, folder: str | Path | None = None) -> Path:
    """Write a model folder without weights, for `open_engine(str(folder), load_format="dummy")`.

    Args:
        name_or_path: name of a preset, or path of a JSON file with the arguments of `Architecture`.
        folder: the new folder; None is a separate one in the user's cache folder. A folder with
            the same files is kept unchanged.

    Returns:
        The folder; it appears only when it is complete.

    Raises:
        InputError: as for `Architecture.load`, or `folder` has other contents or is not
            writable.
    """
    path = _locate(name_or_path)
    files = Architecture.load(path)._files()
    if folder is None:
        name = path.stem[:40]  # short enough for any file system, with the digest
        target = default_path().parent / "dummy" / f"{name}-{digest(files).hex()[:12]}"
    else:
        target = Path(folder).expanduser()
    try:
        if not _holds(target, files):
            with whole_folder(target) as part:
                for name, text in files.items():
                    (part / name).write_bytes(text.encode())
    except OSError as error:
        if not _holds(target, files):  # else another process was quicker
            raise InputError(
                f"the dummy model cannot be written to {str(target)!r} "
                f"({error.strerror or error}): choose a new, writable folder as "
                "folder=…, or delete that one if it is an old dummy"
            ) from error
    return target


def _holds(folder: Path, files: dict[str, str]) -> bool:
    """Whether the folder has exactly these texts in these files."""
    try:
        return all((folder / name).read_bytes() == text.encode() for name, text in files.items())
    except OSError:
        return False


def _locate(name_or_path: object) -> Path:
    """The JSON file of a preset or a path."""
    if not isinstance(name_or_path, str | Path) or not str(name_or_path):
        raise InputError(
            f"name_or_path={name_or_path!r} must be a preset ({', '.join(presets())}) or the path "
            "of a JSON file"
        )
    path = Path(name_or_path)
    if isinstance(name_or_path, Path) or path.suffix == ".json" or path.name != name_or_path:
        return path.expanduser()
    values.known("architecture", name_or_path, presets(), ", or use the path of a JSON file")
    return SHAPES / f"{name_or_path}.json"


def _check_keys(shapes: object) -> None:
    names = [field.name for field in fields(Architecture)]
    if not isinstance(shapes, dict):
        raise InputError(f"must be an object with the keys {', '.join(names)}")
    for name in shapes:
        values.known("key", name, names)
    needed = [field.name for field in fields(Architecture) if field.default is MISSING]
    if missing := [name for name in needed if name not in shapes]:
        raise InputError(f"missing {', '.join(missing)}: set a value for each")


def _text(name: str) -> str:
    return (MODEL / name).read_text(encoding="utf-8")


def _embedded(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(_text(name))
    return content


@cache
def _tokenizer_size() -> int:
    """Size of the embedded tokenizer's vocabulary."""
    tokenizer = _embedded("tokenizer.json")
    ids: list[int] = [token["id"] for token in tokenizer["added_tokens"]]
    ids += tokenizer["model"]["vocab"].values()
    return max(ids) + 1
