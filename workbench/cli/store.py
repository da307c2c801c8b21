"""`workbench store`: files of kept answers, made one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from typer import Argument

from workbench.cli.flags import Json
from workbench.cli.output import clean_exit, command_group, fail, say, show, table

app = command_group("Files of kept answers.")


@app.command("merge")
def merge_stores(
    into: Annotated[Path, Argument(help="The store to add to; created if it is missing.")],
    sources: Annotated[list[Path], Argument(metavar="FROM", help="Stores; they are not changed.")],
    as_json: Json = False,
) -> None:
    """Add the answers of other stores to one; an answer that is there stays."""
    from workbench.merging import merge

    try:
        with clean_exit():
            done = [asdict(one) | {"source": str(one.source)} for one in merge(into, sources)]
    except KeyboardInterrupt:
        fail("stopped: what was added is kept; the same merge again adds the rest", 130)
    columns = ["from", "new", "there already", "of them other values"]
    show(done, table(columns, [[*one.values()] for one in done]), as_json=as_json)
    if other := sum(one["differing"] for one in done):
        kept = "the values there stay: samples without a seed, or rounded otherwise elsewhere"
        say(f"warning: {other:,} answers have another value in {into}; {kept}")


@app.command()
def info(
    path: Annotated[Path | None, Argument(help="Default: yours.")] = None, as_json: Json = False
) -> None:
    """Show a store's rows and bytes."""
    from workbench.merging import size_of
    from workbench.store import default_path

    file = path or default_path()
    facts = {"path": str(file), "rows": size_of(file), "bytes": file.stat().st_size}
    show(facts, table([*facts], [[*facts.values()]]), as_json=as_json)
