"""The embedded model: a small Llama trained from scratch on text that this package generates.

`MODEL` is the folder with its weights; `arithmetic` makes its text, `tokenizer` and `train` build
it. `MEMORY` is a masked-diffusion model that knows 64 answers by heart; `memoriser` builds it.
Nothing here imports torch until it is used.
"""

from pathlib import Path

__all__ = ["MEMORY", "MODEL"]

MODEL = Path(__file__).parent / "model"
MEMORY = Path(__file__).parent / "memory"
