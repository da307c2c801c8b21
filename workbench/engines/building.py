"""Models of transformers built one at a time: while it builds one, it sets PyTorch's number format.

Two threads at once would leave the format of one of them behind, for all that comes after.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

ONE = RLock()


@contextmanager
def building() -> Iterator[None]:
    """Build alone, and leave PyTorch's number format as it was."""
    import torch

    with ONE:
        before = torch.get_default_dtype()
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def shape_only(config: Any) -> Any:
    """The model of a configuration without its numbers.

    Raises:
        Exception: transformers' own, in as many kinds as there are models.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with building(), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
