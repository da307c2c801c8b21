"""`python -m benchmarks accuracy`: each part measures what it says, in small."""

from __future__ import annotations

import pytest

from benchmarks import accuracy
from workbench.engines.vllm import VLLMEngine
from workbench.errors import InputError


def test_an_unknown_part_is_named() -> None:
    with pytest.raises(InputError, match=r"no part 'speed'.*Known: grading, votes"):
        accuracy.measure(["speed"])


def test_grading_counts_what_it_graded() -> None:
    speed, hostile = accuracy._grading(count=200, rounds=2)
    assert speed.low is not None
    assert 0 < speed.low <= speed.value
    assert hostile.value > 1.8  # the limit was reached, and what follows was graded


@pytest.mark.slow
def test_agents_are_measured_together_and_apart(plain: VLLMEngine) -> None:
    (votes,) = accuracy._votes(plain, 1, count=2)
    (refine,) = accuracy._refine(plain, 1, count=4)
    assert votes.value > 1
    assert refine.value > 1
    (gain,) = accuracy._gain(plain, count=20)
    assert gain.runs == 20
