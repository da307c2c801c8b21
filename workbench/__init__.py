"""A research workbench for large language models: one engine interface, real measurements.

`import workbench as wb` provides what is used daily; each name is imported at its first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from workbench.types import Completion, LabelScores, Sampling

if TYPE_CHECKING:
    from workbench import agents, icm, uncertainty
    from workbench.comparison import compare
    from workbench.engines import open_engine
    from workbench.evaluation import evaluate
    from workbench.judge import Judge
    from workbench.panel import watch
    from workbench.prompts import compare_prompts
    from workbench.sweep import Sweep
    from workbench.tasks import open_task
    from workbench.throughput import Throughput

__all__ = [
    "Completion",
    "Judge",
    "LabelScores",
    "Sampling",
    "Sweep",
    "Throughput",
    "agents",
    "compare",
    "compare_prompts",
    "evaluate",
    "icm",
    "open_engine",
    "open_task",
    "uncertainty",
    "watch",
]
__version__ = "0.1.0"

_HOMES = {
    "Judge": "judge",
    "Sweep": "sweep",
    "Throughput": "throughput",
    "compare": "comparison",
    "compare_prompts": "prompts",
    "evaluate": "evaluation",
    "open_engine": "engines",
    "open_task": "tasks",
    "watch": "panel",
}
_ROOMS = ("agents", "icm", "uncertainty")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"workbench.{name}")
    if name in _HOMES:
        return getattr(import_module(f"workbench.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'workbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
