"""The benchmark of many replicas: its arithmetic, a small run of it, and its figure."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import scale, tables


def test_the_replicas_that_fill_a_core() -> None:
    """At 0.1 ms per prompt a core asks 10,000 prompts per second."""
    even = {1: 0.1, 1000: 0.1}
    assert scale.kept_busy(even, 100) == pytest.approx(100)
    assert scale.kept_busy(even, 1) == pytest.approx(10_000)  # beyond what was measured
    assert scale.kept_busy({1: 0.1, 100: 0.2}, 50) == pytest.approx(100)
    assert 100 < scale.kept_busy({1: 0.1, 100: 0.1, 1000: 0.4}, 50) < 200


@pytest.mark.parametrize("kind", scale.KINDS)
def test_a_client_of_several_replicas_is_measured(kind: str) -> None:
    done = scale._client(3, kind, [200, 300])
    assert len(done["runs"]) == 2
    assert all(0 < cost < 0.1 for cost in (*done["runs"], done["opened"] / 100))
    assert done["peak"] > 20


def test_the_figure_is_drawn_from_the_results(tmp_path: Path) -> None:
    scale.draw(tables.result("scale")["rows"], tmp_path / "scale.png")
    assert {one.name for one in tmp_path.iterdir()} == {"scale.png", "scale_dark.png"}
