"""The embedded models: small ones, trained from nothing on text that this package generates.

`MODEL` is the folder of the Llama: `arithmetic` makes its text, `tokenizer` and `train` build it.
`DIFFUSION` is its masked-diffusion sibling, which `train` builds from it on rows of `masked`.
`MEMORY` is another one, which knows 64 answers by heart; `memoriser` builds it. Nothing here
imports torch until it is used.
"""

from pathlib import Path

__all__ = ["DIFFUSION", "MEMORY", "MODEL"]

MODEL = Path(__file__).parent / "model"
DIFFUSION = Path(__file__).parent / "diffusion"
MEMORY = Path(__file__).parent / "memory"
