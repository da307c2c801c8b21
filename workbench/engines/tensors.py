"""What transformers found in a checkpoint: all of the model, or it is refused.

It fills what is missing with random numbers, and says so in a warning only.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from workbench.errors import InputError

KINDS = {
    "missing_keys": "lacks",
    "unexpected_keys": "has, beyond the model,",
    "mismatched_keys": "has in another shape",
}


@contextmanager
def silent() -> Iterator[None]:
    """Without the table of tensors that transformers prints: what is wrong with them is raised."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def check_tensors(
    model: str, found: Mapping[str, Any], *kinds: str, but: Collection[str] = ()
) -> None:
    """Refuse a checkpoint that is not all of the model.

    Args:
        model: its name, for people.
        found: the loading info of transformers.
        kinds: of `KINDS`, what is refused.
        but: names that may be missing.

    Raises:
        InputError: names the tensors.
    """
    for key in kinds:
        names = sorted(str(name) for name in found.get(key) or () if name not in but)
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise InputError(
                f"model {model!r}: the checkpoint {KINDS[key]} {', '.join(names[:3])}{more}: it "
                "does not belong to its config.json, or is not whole; fetch it again"
            )
