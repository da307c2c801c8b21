"""The benchmark of masked diffusion, in small."""

from __future__ import annotations

import pytest

from benchmarks import diffusion, diffusion_server
from workbench.engines.diffusion import unavailable
from workbench.errors import InputError

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=f"needs {unavailable()}")


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(InputError, match="no part 'speed'"):
        diffusion.measure(["speed"])


def test_its_parts_hold_in_small(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(diffusion, "ASKED", 40)
    monkeypatch.setattr(diffusion, "MIXED", 24)
    alone, cached, published, faster, fewer = diffusion.measure(
        ["alone", "published", "continuous"], 1
    )
    assert (alone.value, alone.holds) == (40, True)
    assert (cached.value, cached.holds) == (10, True)
    assert published.holds
    assert faster.value > 0
    assert fewer.value > 10
    assert capsys.readouterr().err.startswith("alone …\n")


def test_the_trade_off_in_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusion, "PROBLEMS", 24)
    monkeypatch.setattr(diffusion, "TRADED", diffusion.TRADED[:2])
    one, _, fast, points, fewer, pace, faster, *by_steps = diffusion.measure(["problems"], 1)
    assert one.bound == "≥ 50 %"
    assert points.value == pytest.approx(fast.value - one.value)
    assert (fewer.bound, fewer.holds) == ("≥ 3 ×", True)
    assert faster.value > 1
    assert pace.value > 0
    assert [line.what for line in by_steps] == [f"… threshold 0.9, {n} steps" for n in range(1, 5)]


@pytest.mark.slow
def test_a_round_of_many_requests_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusion_server, "AT_ONCE", 60)
    monkeypatch.setattr(diffusion_server, "ROUNDS", 2)
    answered, other, grown = diffusion_server.load()
    assert (answered.value, answered.holds) == (100, True)
    assert "good ones answered of 108" in answered.what
    assert other.value == 0
    assert grown.value < 100
