"""Sweeps: a notebook run for each point of a grid, and a table that holds every point's outcome.

`run(Sweep.read("sweep.yaml"))` runs what is not done; `read_results(folder)` reads the table.
"""

from workbench.sweep.grid import Grid, Random, RandomValue
from workbench.sweep.plan import Sweep
from workbench.sweep.results import Results, paired, read_results
from workbench.sweep.run import run
from workbench.sweep.slurm import SlurmArray

__all__ = [
    "Grid", "Random", "RandomValue", "Results", "SlurmArray", "Sweep", "paired", "read_results",
    "run",
]  # fmt: skip
