"""A vLLM server in a separate process, for work over HTTP: start, wait, stop."""

from workbench.serving.presets import PRESETS, Preset
from workbench.serving.server import Server, serve

__all__ = ["PRESETS", "Preset", "Server", "serve"]
