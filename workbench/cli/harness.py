"""`workbench lm-eval`: the command of lm-evaluation-harness, which knows our engines."""

from __future__ import annotations

import sys
from importlib import import_module

from typer import Context


def lm_eval(context: Context) -> None:
    """Run lm-evaluation-harness, with --model workbench besides its own; all its arguments."""
    import_module("workbench.lm_eval")  # registers the model
    from lm_eval.__main__ import cli_evaluate

    sys.argv = ["lm-eval", *context.args]
    cli_evaluate()
