"""`python -m workbench`: the command line."""

from workbench.cli import app

app(prog_name="workbench")
