"""The embedded model: a small Llama trained from scratch on text that this package generates.

`MODEL` is the folder with its weights; `arithmetic` makes its text, `tokenizer` and `train` build
it. Nothing here imports torch until it is used.
"""

from pathlib import Path

__all__ = ["MODEL"]

MODEL = Path(__file__).parent / "model"
