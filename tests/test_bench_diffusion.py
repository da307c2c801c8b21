"""The benchmark of masked diffusion, in small."""

from __future__ import annotations

import pytest

from benchmarks import batching, diffusion
from workbench.engines.diffusion import unavailable
from workbench.errors import InputError

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=f"needs {unavailable()}")


def quietly(text: str) -> None:
    """Nobody listens."""


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(InputError, match="part='speed'"):
        diffusion.measure(["speed"], 1, quietly)


def test_its_parts_hold_in_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusion, "ASKED", 40)
    monkeypatch.setattr(diffusion, "MIXED", 24)
    said: list[str] = []
    alone, cached, published, faster, fewer = diffusion.measure(
        ["alone", "published", "continuous"], 1, said.append
    )
    assert (alone.value, alone.holds) == (40, True)
    assert (cached.value, cached.holds) == (10, True)
    assert published.holds
    assert faster.value > 0
    assert fewer.value > 10
    assert said[0] == "alone …"


def test_the_trade_off_in_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusion, "PROBLEMS", 24)
    monkeypatch.setattr(diffusion, "TRADED", diffusion.TRADED[:2])
    one, _, fast, points, fewer, pace, faster, *by_steps = diffusion.measure(
        ["problems"], 1, quietly
    )
    assert one.bound == "≥ 50 %"
    assert points.value == pytest.approx(fast.value - one.value)
    assert (fewer.bound, fewer.holds) == ("≥ 3 ×", True)
    assert faster.value > 1
    assert pace.value > 0
    assert [line.what for line in by_steps] == [f"… threshold 0.9, {n} steps" for n in range(1, 5)]


@pytest.mark.slow
def test_a_round_of_many_requests_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "AT_ONCE", 60)
    monkeypatch.setattr(batching, "ROUNDS", 2)
    answered, other, grown = batching.load(quietly)
    assert (answered.value, answered.holds) == (100, True)
    assert "good ones answered of 108" in answered.what
    assert other.value == 0
    assert grown.value < 100
