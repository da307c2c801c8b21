from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from workbench import Sampling, open_engine
from workbench.engines import unavailable
from workbench.engines.checkpoints.architecture import Architecture, dummy_model, presets
from workbench.errors import InputError
from workbench.store import default_path
from workbench.tiny import MODEL

SMALL: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 2048,
}
PUBLISHED = {
    "llama-1b": 1_235_814_400,
    "llama-8b": 8_030_261_248,
    "llama-70b": 70_553_706_496,
}


def shapes(folder: Path, content: object, name: str = "small") -> Path:
    path = folder / f"{name}.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_parameters_are_those_of_transformers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, LlamaForCausalLM

    # The last has heads that are not hidden_size / num_attention_heads wide.
    own = (SMALL, SMALL | {"tie_word_embeddings": True}, SMALL | {"head_dim": 80})
    sources: list[str | Path] = [shapes(tmp_path, one, str(i)) for i, one in enumerate(own)]
    for source in [*presets(), *sources]:
        config = AutoConfig.from_pretrained(dummy_model(source))
        with torch.device("meta"):
            model = LlamaForCausalLM(config)
        assert Architecture.load(source).parameters == model.num_parameters(), source
    assert {name: Architecture.load(name).parameters for name in presets()} == PUBLISHED


def test_the_folder_is_a_model_without_weights(tmp_path: Path) -> None:
    folder = dummy_model("llama-8b", tmp_path / "new" / "model")
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    embedded = json.loads((MODEL / "config.json").read_text())
    assert config.keys() == embedded.keys()
    changed = {name: value for name, value in config.items() if value != embedded[name]}
    assert changed == {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_theta": 500_000.0, "rope_type": "default"},
    }
    assert (folder / "tokenizer.json").read_bytes() == (MODEL / "tokenizer.json").read_bytes()
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 8192


def test_each_content_has_its_own_folder_in_the_cache(tmp_path: Path) -> None:
    first = dummy_model(shapes(tmp_path, SMALL))
    written = (first / "config.json").stat().st_mtime_ns
    assert first.is_relative_to(default_path().parent)
    assert first.name.startswith("small-")
    assert dummy_model(str(shapes(tmp_path, SMALL))) == first
    assert (first / "config.json").stat().st_mtime_ns == written
    assert dummy_model(shapes(tmp_path, SMALL | {"rope_theta": 1e4})) != first
    long = dummy_model(shapes(tmp_path, SMALL, "x" * 250))
    assert (long / "config.json").is_file()


def test_many_at_once_write_one_whole_folder(tmp_path: Path) -> None:
    source = shapes(tmp_path, SMALL)
    for attempt in range(10):
        folder = tmp_path / f"{attempt}" / "model"
        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(dummy_model, [source] * 8, [folder] * 8)) == {folder}
        assert len(list(folder.iterdir())) == 4
        assert list(folder.parent.iterdir()) == [folder]  # nothing half done beside it


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    source = shapes(tmp_path, SMALL)
    folder = dummy_model(source, tmp_path / "model")
    before = (folder / "config.json").read_bytes()
    for target in (folder, source, source / "below"):
        with pytest.raises(InputError, match=r"choose a new, writable folder"):
            dummy_model("llama-1b", target)
    assert (folder / "config.json").read_bytes() == before
    assert json.loads(source.read_text()) == SMALL
    assert {path.name for path in tmp_path.iterdir()} == {"small.json", "model"}
    empty = tmp_path / "empty"
    empty.mkdir()
    assert (dummy_model(source, empty) / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, r"hidden_size=0: must be a whole number from 1"),
        ({"intermediate_size": -1}, r"intermediate_size=-1: must be a whole number"),
        ({"num_hidden_layers": 2.0}, r"num_hidden_layers=2.0: must be a whole number"),
        ({"num_attention_heads": "4"}, r"num_attention_heads='4': must be a whole number"),
        ({"num_key_value_heads": True}, r"num_key_value_heads=True: must be a whole number"),
        ({"vocab_size": None}, r"vocab_size=None: must be a whole number"),
        ({"max_position_embeddings": 0}, r"max_position_embeddings=0: must be a whole number"),
        ({"head_dim": 0}, r"head_dim=0: must be a whole number"),
        ({"tie_word_embeddings": 1}, r"tie_word_embeddings=1: must be True or False"),
        ({"rope_theta": 0}, r"rope_theta=0: must be a number above 0"),
        ({"rope_theta": True}, r"rope_theta=True: must be a number above 0"),
        ({"rope_theta": float("inf")}, r"rope_theta=inf: must be a number above 0"),
        ({"rope_theta": float("nan")}, r"rope_theta=nan: must be a number above 0"),
        ({"hidden_size": 130}, r"hidden_size=130 is not a multiple .*=4: .* or set head_dim"),
        ({"head_dim": 31}, r"head_dim=31 is odd.*set an even head_dim"),
        ({"hidden_size": 132}, r"head_dim=33 is odd.*other hidden_size"),
        ({"num_key_value_heads": 3}, r"num_attention_heads=4 is not a multiple of .*=3"),
        ({"num_key_value_heads": 8}, r"num_attention_heads=4 is not a multiple of .*=8"),
        ({"vocab_size": 569}, r"vocab_size=569 is too small.*at least 570"),
    ],
)
def test_wrong_values(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"^{message}"):
        Architecture(**SMALL | changes)
    with pytest.raises(InputError, match=rf"small\.json:1: {message}"):
        dummy_model(shapes(tmp_path, SMALL | changes))


def test_values_at_their_limits() -> None:
    Architecture(**SMALL | {"vocab_size": 570, "num_key_value_heads": 4, "rope_theta": 1})
    Architecture(**SMALL | {"hidden_size": 130, "head_dim": 2, "num_key_value_heads": 1})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "{",
            r"in double quotes at column 2; the file needs a JSON object, or use one of llama-1b",
        ),
        ("\udcff", r"the byte 0xff is not UTF-8; the file needs"),
        ("[1]", r"must be an object with the keys hidden_size, "),
        (SMALL | {"hiden_size": 1}, r"no key 'hiden_size', did you mean 'hidden_size'\?"),
        (SMALL | {"zzz": 1}, r"no key 'zzz'. Known: hidden_size, "),
        ({"hidden_size": 8, "vocab_size": 570}, r"missing intermediate_size, num_hidden_layers, "),
    ],
)
def test_wrong_files(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "small.json"
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=rf"small\.json(:1)?: .*{message}"):
        Architecture.load(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Llama-8B", r"no architecture 'Llama-8B', did you mean 'llama-8b'\? Known: "),
        ("gpt", r"Known: llama-1b, llama-70b, llama-8b, or use the path of a JSON file"),
        ("absent.json", r"absent\.json: No such file"),
        ("./llama-8b", r"llama-8b: No such file"),
        (MODEL, r": Is a directory; the file needs"),
        ("", r"name_or_path='' must be a preset \(llama-1b, "),
        (8, r"name_or_path=8 must be a preset"),
    ],
)
def test_wrong_names(name: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dummy_model(name)


@pytest.mark.skipif(unavailable("vllm") is not None, reason="needs vLLM")
def test_vllm_runs_it(tmp_path: Path) -> None:
    """Replaces the shared engine, which loads again where it is needed."""
    folder = dummy_model(shapes(tmp_path, SMALL), tmp_path / "model")
    options: dict[str, Any] = {"enforce_eager": True, "kv_cache_memory_bytes": 2**28}
    with open_engine(str(folder), "vllm", load_format="dummy", store=None, **options) as engine:
        assert engine.info.context_length == 8192
        sampling = Sampling(max_tokens=16, temperature=1.0, seed=0, logprobs=2)
        rows = engine.generate(["1+1=", "2+2=", "Hello there", "x"], sampling)
    assert [row.completion_tokens for row in rows] == [16] * 4
    ids = {token for row in rows for token in row.token_ids or ()}
    assert max(ids) >= 570  # the tokenizer does not know it, and that is no failure
    assert len(ids) > 16  # random weights, not constant ones
