"""The package without a clone: what it says to install, and where its notebooks are."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench import machine, runs

PIP = 'pip install "workbench-lm[{}]"'
INDEX = f" --extra-index-url {machine.CPU_TORCH}"


@pytest.mark.parametrize(
    ("here", "part", "hints"),
    [
        (("Linux", "x86_64", None), "", ("make setup VARIANT=cpu", PIP.format("cpu") + INDEX)),
        (("Linux", "x86_64", "/bin/nvidia-smi"), "",
         ("make setup VARIANT=cuda", PIP.format("cuda"))),
        (("Linux", "aarch64", None), "", (PIP.format("transformers"),) * 2),
        (("Darwin", "arm64", None), "", (PIP.format("transformers"),) * 2),
        (("Linux", "x86_64", None), "lab", (PIP.format("lab"),) * 2),
    ],
)  # fmt: skip
def test_the_hint_is_a_command_for_this_machine(
    monkeypatch: pytest.MonkeyPatch,
    here: tuple[str, str, str | None],
    part: str,
    hints: tuple[str, str],
) -> None:
    system, processor, driver = here
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("platform.machine", lambda: processor)
    monkeypatch.setattr("shutil.which", lambda _: driver)
    assert machine.install_hint(part) == hints[0]
    monkeypatch.setattr(machine, "checkout", lambda: None)
    assert machine.install_hint(part) == hints[1]


def test_an_environment_inside_a_project_does_not_lend_its_commit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert runs.commit() is not None
    assert (runs.shipped_notebooks() / "01_quickstart.ipynb").is_file()
    monkeypatch.setattr(runs, "checkout", lambda: None)
    assert runs.commit() is None
    assert runs.shipped_notebooks() == Path(runs.__file__).parent / "_notebooks"
