"""The embedded models: small ones, trained from nothing on text made of the tasks of `tasks`.

`MODEL` is the folder of the Llama, `DIFFUSION` that of its masked-diffusion sibling; each has a
card, README.md. `tools/training` in the repository makes them again.
"""

from pathlib import Path

__all__ = ["DIFFUSION", "MODEL"]

MODEL = Path(__file__).parent / "model"
DIFFUSION = Path(__file__).parent / "diffusion"
