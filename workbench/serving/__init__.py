"""A vLLM server in a process of its own, for work over HTTP: started, awaited, ended."""

from workbench.serving.presets import PRESETS, Preset
from workbench.serving.server import Server, serve

__all__ = ["PRESETS", "Preset", "Server", "serve"]
