"""The embedded models: small ones, trained from scratch on text of the tasks in `tasks`.

`MODEL` is the folder of the Llama, `DIFFUSION` that of its masked-diffusion sibling. Each has a
model card, README.md. `tools/training` in the repository trains them.
"""

from pathlib import Path

__all__ = ["DIFFUSION", "MODEL"]

MODEL = Path(__file__).parent / "model"
DIFFUSION = Path(__file__).parent / "diffusion"
