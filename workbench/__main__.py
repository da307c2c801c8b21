"""`python -m workbench`: the command."""

from workbench.cli import app

app(prog_name="workbench")
