"""What commands print: tables whole and plain, errors in a line, NAME=VALUE."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from workbench.cli.flags import pairs
from workbench.cli.output import command_group, table
from workbench.errors import InputError


def test_a_table_is_whole_plain_and_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    long = "[red]a[/] :smile: https://x.y 'z' " + "word " * 60 + "end"
    assert table(["name", "n", "x"], [[long, 7, 0.5], ["日本", 1234, 10.25], ["", 1, 2]]) == (
        f"{'name':{len(long)}}     n      x\n"
        f"{long}     7    0.5\n"
        f"日本{'':{len(long) - 4}}  1234  10.25\n"
        f"{'':{len(long)}}     1      2"
    )
    assert table(["a", "b"], []) == "a  b"


def test_errors_of_ours_are_a_line_and_others_are_not_hidden() -> None:
    app = command_group("A group.")

    @app.command()
    def ours() -> None:
        raise InputError("k=0: must be a whole number from 1")

    @app.command()
    def other() -> None:
        raise KeyError("k")

    done = CliRunner().invoke(app, ["ours"])
    assert (done.exit_code, done.stderr) == (2, "error: k=0: must be a whole number from 1\n")
    assert isinstance(CliRunner().invoke(app, ["other"]).exception, KeyError)


def test_pairs() -> None:
    assert pairs(["a=1", "b=x=y", "c="], "-o") == {"a": "1", "b": "x=y", "c": ""}
    assert pairs(None, "-o") == {}
    for wrong, message in (
        (["a"], "-o 'a' must be NAME=VALUE"),
        (["=1"], "-o '=1' must be NAME=VALUE"),
        (["a=1", "a=2"], "-o a is given twice"),
    ):
        with pytest.raises(InputError, match=message):
            pairs(wrong, "-o")
