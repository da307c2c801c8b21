from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from workbench import Completion, Sampling
from workbench.errors import InputError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_k", 0),
        ("min_p", 1.5),
        ("n", 0),
        ("n", True),
        ("seed", -1),
        ("stop", ("",)),
        ("stop", "word"),
        ("logprobs", -1),
        ("choices", ()),
        ("choices", "yes"),
        ("stop", None),
    ],
)
def test_sampling_names_the_value_that_is_wrong(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        Sampling(**{"temperature": 1.0, name: value})


def test_greedy_samples_would_be_equal() -> None:
    with pytest.raises(InputError, match="temperature above 0"):
        Sampling(n=2)


def test_structured_outputs_exclude_each_other() -> None:
    with pytest.raises(InputError, match="exclude each other"):
        Sampling(regex="a", choices=("a",))


def test_a_completion_is_its_own_first_sample() -> None:
    one = Completion(text="a", finish_reason="stop")
    assert one.samples == (one,)


def test_import_is_light() -> None:
    code = (
        "import sys, workbench; heavy = {'torch', 'vllm', 'transformers', 'matplotlib', 'pandas'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
