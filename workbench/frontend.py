"""Which front end shows this process's output."""

from __future__ import annotations

import os
import sys

from workbench.errors import InputError


def in_kernel() -> bool:
    """Whether this process is a notebook's kernel."""
    ipython = sys.modules.get("IPython")
    return hasattr(ipython.get_ipython() if ipython else None, "kernel")


def chosen_view() -> str:
    """The kind of view: `WORKBENCH_PROGRESS`, or by the environment."""
    wish = os.environ.get("WORKBENCH_PROGRESS")
    if wish and wish not in {"widget", "lines", "off"}:
        raise InputError(f"WORKBENCH_PROGRESS={wish!r}: use widget, lines or off, or unset it")
    if wish in {"lines", "off"}:
        return wish
    # JupyterLab and VS Code set these, and can show widgets.
    live = wish == "widget" or not {"JPY_SESSION_NAME", "VSCODE_PID"}.isdisjoint(os.environ)
    return "widget" if in_kernel() and live else "lines"
