"""The engine for models behind OpenAI-compatible servers."""

from workbench.engines.estimate import Estimate
from workbench.engines.remote.engine import RemoteEngine
from workbench.engines.remote.settings import RemoteOptions

__all__ = ["Estimate", "RemoteEngine", "RemoteOptions"]
