"""A research workbench for large language models: one engine interface, real measurements."""

from typing import TYPE_CHECKING, Any

from workbench.types import Completion, LabelScores, Sampling

if TYPE_CHECKING:
    from workbench.engines import open_engine

__all__ = ["Completion", "LabelScores", "Sampling", "open_engine"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "open_engine":
        from workbench.engines import open_engine

        return open_engine
    raise AttributeError(f"module 'workbench' has no attribute {name!r}")
