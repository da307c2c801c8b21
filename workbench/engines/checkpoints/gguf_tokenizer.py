"""The tokenizer that a GGUF file describes, built from its metadata alone.

It follows llama.cpp: its merges, its splitting of texts, and the tokens that it adds to a text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.engines.checkpoints.gguf_file import GGUFFile
from workbench.errors import InputError

REMEDY = "set the model's tokenizer with --tokenizer (tokenizer=…), a hub name or folder"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
UNMERGED = (UNKNOWN, CONTROL, BYTE)  # never merged from parts
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
THREE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ONE = THREE.replace("{1,3}", "")
CASES = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How a text is split before merging, by `tokenizer.ggml.pre`; each pattern splits what the
# previous one left. Names that llama.cpp treats alike share a line.
SPLITS = {
    "gpt-2 phi-2 gigachat mellum mpt olmo jais exaone4 trillion": (WORDS,),
    "smollm starcoder refact command-r codeshell exaone minerva-7b": (r"\p{N}", WORDS),
    "llama3 llama-v3 llama-bpe falcon3 pixtral dbrx smaug-bpe": (THREE,),
    "qwen2 deepseek-r1-qwen stablelm2 megrez hunyuan": (ONE,),
    "tekken": (CASES,),
}
PATTERNS = {name: patterns for names, patterns in SPLITS.items() for name in names.split()}
# Texts equal to a token become that token, and BOS comes first by default.
WHOLE_FIRST = ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "tekken")
# Defaults for missing settings.
DEFAULTS = {"llama": {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}}

PROBES = (
    "Hello  world\n\n\n  - don't WE'LL\t(x1, y_2): 12345 + 6.75e-3",
    " naïve ÄÖ 日本語のテキスト 🤗 привет мир\r\n\r\n    return x // 2**31;\n",
)


def special(file: GGUFFile, name: str) -> int | None:
    """The id of a special token, such as "bos"; None if the file has none."""
    tokens = _list(file, "tokens")
    defaults = DEFAULTS.get(str(file.fields.get("tokenizer.ggml.model")), {})
    key = f"{name}_token_id"
    number = file.fields.get(f"tokenizer.ggml.{key}", defaults.get(key))
    if number is None or number == 2**32 - 1:  # llama.cpp's value for none
        return None
    if not isinstance(number, int) or not 0 <= number < len(tokens):
        raise file.refused(f"has tokenizer.ggml.{key}={number!r:.40} of {len(tokens)} tokens")
    return number


def end_tokens(file: GGUFFile) -> list[int]:
    """Every token that ends an answer, the usual one first."""
    numbers = (special(file, name) for name in ("eos", "eot", "eom"))
    return [*dict.fromkeys(number for number in numbers if number is not None)]


def write_tokenizer(file: GGUFFile, folder: Path, context: int) -> int:
    """Write tokenizer.json, tokenizer_config.json and the chat template; returns the token count.

    Raises:
        InputError: an unsupported kind of tokenizer, or an unsupported way of splitting.
    """
    kind = file.fields.get("tokenizer.ggml.model")
    if kind not in ("llama", "gpt2"):
        raise file.refused(f"has a tokenizer of kind {kind!r:.40}", REMEDY)
    try:
        tokenizer = _by_scores(file) if kind == "llama" else _by_merges(file)
        _finish(file, tokenizer)
    except InputError:
        raise
    except Exception as error:  # tokenizers raises plain `Exception`
        raise file.refused(f"has a broken tokenizer ({error!s:.200})", REMEDY) from error
    tokens = _list(file, "tokens")
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    for key, name in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items():
        if (number := special(file, name)) is not None:
            config[f"{key}_token"] = tokens[number]
    if isinstance(template := file.fields.get("tokenizer.chat_template"), str):
        (folder / "chat_template.jinja").write_text(template, "utf-8", newline="")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")
    return len(tokens)


def check_tokenizer(file: GGUFFile, folder: Path) -> None:
    """Refuse a folder whose tokenizer transformers loads as a different one.

    For some kinds of models, transformers uses its own class instead of what the folder says.

    Raises:
        InputError: names the text.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    written = Tokenizer.from_file(str(folder / "tokenizer.json"))
    read = AutoTokenizer.from_pretrained(folder)
    for text in PROBES:
        one, other = (_parts(of, text) for of in (written, read.backend_tokenizer))
        if one != other or read(text).input_ids != written.encode(text).ids:
            kind = type(read).__name__
            raise file.refused(
                f"has a tokenizer that transformers loads as a {kind}, which splits {text!r:.20}… "
                "differently",
                REMEDY,
            )


def _parts(tokenizer: Any, text: str) -> Any:
    """The parts before merging: a small vocabulary may lack the merges that show a difference."""
    split = tokenizer.pre_tokenizer
    return split and split.pre_tokenize_str(text)


def _list(file: GGUFFile, name: str) -> list[Any]:
    values = file.fields.get(f"tokenizer.ggml.{name}")
    if not isinstance(values, list) or not values:
        raise file.refused(f"has no tokenizer.ggml.{name}", REMEDY)
    return values


def _kinds(file: GGUFFile) -> list[int]:
    count = len(_list(file, "tokens"))
    kinds = file.fields.get("tokenizer.ggml.token_type") or [NORMAL] * count
    if len(kinds) != count:
        raise file.refused("does not have one token type per token", REMEDY)
    return list(kinds)


def _vocabulary(file: GGUFFile) -> dict[str, int]:
    vocabulary: dict[str, int] = {}
    for number, token in enumerate(_list(file, "tokens")):
        if vocabulary.setdefault(token or f"[EMPTY_{number}]", number) != number:
            raise file.refused(f"has the token {token!r:.40} twice", REMEDY)
    return vocabulary


def _by_scores(file: GGUFFile) -> Any:
    """SentencePiece's BPE: of all neighbours, the pair whose token has the best score is merged."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocabulary, scores, kinds = _vocabulary(file), _list(file, "scores"), _kinds(file)
    parts = {token for token, number in vocabulary.items() if kinds[number] not in UNMERGED}
    merges = [
        (-scores[vocabulary[token]], at, token)
        for token in parts
        for at in range(1, len(token))
        if token[:at] in parts and token[at:] in parts
    ]
    unknown = special(file, "unknown")
    model = models.BPE(
        vocab=vocabulary,
        merges=[(token[:at], token[at:]) for _, at, token in sorted(merges)],
        unk_token=None if unknown is None else _list(file, "tokens")[unknown],
        fuse_unk=True,
        byte_fallback=BYTE in kinds,
    )
    tokenizer = Tokenizer(model)
    spaces: list[Any] = [normalizers.Replace(" ", "▁")]
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if file.fields.get("tokenizer.ggml.add_space_prefix", True):
        spaces = [normalizers.Prepend("▁"), *spaces]
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(spaces)
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _by_merges(file: GGUFFile) -> Any:
    """Byte-level BPE, with the merges listed."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    pre = file.fields.get("tokenizer.ggml.pre")
    if pre not in PATTERNS:
        raise file.refused(f"splits texts with {pre!r:.40}, which is not supported", REMEDY)
    merges = [(m[: m.index(" ", 1)], m[m.index(" ", 1) + 1 :]) for m in _list(file, "merges")]
    model = models.BPE(_vocabulary(file), merges, ignore_merges=pre in WHOLE_FIRST)
    tokenizer = Tokenizer(model)
    splits = [pre_tokenizers.Split(Regex(p), behavior="isolated") for p in PATTERNS[pre]]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _finish(file: GGUFFile, tokenizer: Any) -> None:
    """Add the tokens that are matched whole, and those around a text."""
    from tokenizers import AddedToken, processors

    tokens, kinds = _list(file, "tokens"), _kinds(file)
    ids = {name: special(file, name) for name in ("bos", "eos", "unknown", "padding")}
    whole = {n for n, kind in enumerate(kinds) if kind in (UNKNOWN, CONTROL, USER_DEFINED)}
    whole |= {number for number in ids.values() if number is not None}
    tokenizer.add_tokens(
        [
            AddedToken(tokens[number], normalized=False, special=kinds[number] != USER_DEFINED)
            for number in sorted(whole)
        ]
    )
    kind, pre = (file.fields.get(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    usual = {"bos": kind == "llama" or pre in WHOLE_FIRST, "eos": False}
    around = {
        name: bool(file.fields.get(f"tokenizer.ggml.add_{name}_token", default))
        for name, default in usual.items()
    }
    for name in (name for name, wanted in around.items() if wanted and ids[name] is None):
        raise file.refused(f"requires a {name} token but has none", REMEDY)
    single, other = (
        " ".join(["<bos>"] * around["bos"] + [f"${text}"] + ["<eos>"] * around["eos"])
        for text in ("A", "B:1")
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single,
        pair=f"{single} {other}",
        special_tokens=[(f"<{name}>", ids[name]) for name, wanted in around.items() if wanted],
    )
