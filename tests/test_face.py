"""What `import workbench as wb` offers, and that it costs next to nothing."""

from __future__ import annotations

import subprocess
import sys

import workbench as wb

HEAVY = ("torch", "vllm", "transformers", "matplotlib", "pandas", "numpy", "openai", "pydantic")


def test_every_name_is_there_and_completion_shows_no_other() -> None:
    for name in wb.__all__:
        assert getattr(wb, name) is not None
    assert dir(wb) == sorted(wb.__all__)
    assert 10 <= len(wb.__all__) <= 16
    assert not hasattr(wb, "nothing")


def test_a_name_is_the_thing_itself() -> None:
    from workbench.engines import open_engine
    from workbench.judge import Judge

    assert wb.open_engine is open_engine
    assert wb.Judge is Judge


def test_a_room_has_a_face_of_its_own() -> None:
    for name in wb.uncertainty.__all__:
        assert callable(getattr(wb.uncertainty, name))


def test_the_import_brings_no_large_library() -> None:
    code = "import sys, workbench; print([m for m in sys.argv[1:] if m in sys.modules])"
    command = [sys.executable, "-c", code, *HEAVY]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
