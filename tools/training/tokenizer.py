"""The embedded model's tokenizer: byte-level BPE, every digit is one token.

All 256 bytes are in the vocabulary, so any text round-trips.
"""

from __future__ import annotations

import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

from tools.training.marks import END, unmarked
from tools.training.text import documents

SPECIAL = (END, "<|user|>", "<|assistant|>")
MASK = "<|mask|>"
"""One token more for masked-diffusion models."""
VOCABULARY = 640
CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}<|assistant|>{{ m['content'] }}<|end|>"
    "{% else %}<|user|>{{ m['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build(*, masked: bool = False) -> Any:
    """Train the tokenizer on generated text; the same result every time."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    stream = islice(documents(0, progress=0.4, other=False), 4_000)
    special = re.compile("|".join(map(re.escape, SPECIAL)))
    tokenizer.train_from_iterator((special.sub("\n", unmarked(text)) for text in stream), trainer)
    if masked:
        tokenizer.add_special_tokens([MASK])
    return tokenizer


def save(folder: Path, *, masked: bool = False, context: int = 2048) -> None:
    """Write `tokenizer.json` and its configuration as transformers and vLLM read them."""
    build(masked=masked).save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "eos_token": END,
        "pad_token": END,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    } | ({"mask_token": MASK} if masked else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
