"""`python -m benchmarks NAME`: measurements as tables, with their targets.

Each run is written to `benchmarks/results/`; the documentation's tables are made from these files.
"""

from __future__ import annotations

import functools
import inspect
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import scale, tables
from benchmarks.harness import RESULTS, publish
from workbench.cli.flags import Json
from workbench.cli.output import command_group

NAMES = (
    "engine", "baseline", "client", "real", "faults", "fleet", "icm", "accuracy", "uncertainty",
    "diffusion", "sweep", "skills", "lmeval", "ray", "scale",
)  # fmt: skip
Out = Annotated[
    Path | None, typer.Option(help="Write the run here, as JSON (default: benchmarks/results/).")
]

app = command_group("Measure speed, as ratios within one run, and the project's other targets.")


def add(name: str) -> None:
    """Make a module's `measure` a command, with `--out` and `--json` added to its options."""
    measure = import_module(f"benchmarks.{name}").measure

    @functools.wraps(measure)
    def run(*, out: Path | None, as_json: bool, **options: Any) -> None:
        parts = [*(options.get("part") or ()), *(["peers"] if options.get("peers") else ())]
        file = out or RESULTS / f"{'-'.join([name, *parts])}.json"
        publish(measure(**options), file, sys.argv[1:], json_too=as_json)

    own = inspect.signature(measure, eval_str=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    more = [
        inspect.Parameter("out", kind, default=None, annotation=Out),
        inspect.Parameter("as_json", kind, default=False, annotation=Json),
    ]
    parameters = [*own.parameters.values(), *more]
    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    app.command(name)(run)


for each in NAMES:
    add(each)


@app.command("tables")
def write_tables() -> None:
    """Write the tables of the README and of docs/benchmarks.md from the results."""
    tables.write()


@app.command("figures")
def draw_figures() -> None:
    """Draw the figures of the documentation that are made from the results."""
    scale.draw(tables.result("scale")["rows"], tables.ROOT / "figures" / "scale.png")


if __name__ == "__main__":
    app()
