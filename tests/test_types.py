from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
from stranger import Asked, Said, Stranger, choice, plain, prompts_of, reply

from workbench import Completion, Sampling, open_engine
from workbench.batching import Traffic
from workbench.engines.diffusion import Denoising, DiffusionEngine
from workbench.engines.requests import misshapen
from workbench.engines.transformers import TransformersEngine
from workbench.engines.vllm import VLLMEngine
from workbench.errors import InputError
from workbench.icm import Wording
from workbench.serving.slurm import SlurmJob
from workbench.sweep import Grid, Random, RandomValue
from workbench.types import Engine, Usage

JUNK: list[Any] = [
    "0.9", None, True, float("nan"), float("inf"), -1, [1], (1, 2), {}, object(), b"a", 5, 16.0,
    1.5, "", ("",), ("a", "a"), ("\ud800",), pd.NA, 10**400, 10**5000, {"a": object()},
    {"a": np.nan}, set("ab"), 1j, "yes", np.array([[1]]), pd.DataFrame({"a": [1]}), int,
]  # fmt: skip
# Of these, what each field takes; None where it may be left out.
TAKEN: dict[str, tuple[Any, ...]] = {
    "max_tokens": (5,), "temperature": (5, 16.0, 1.5), "top_p": (), "top_k": (None, 5),
    "min_p": (None,), "n": (5,), "seed": (None, 5), "stop": (("a", "a"),), "logprobs": (None, 5),
    "choices": (None,), "regex": ("0.9", None, "yes"), "json_schema": (None, {}),
    "ignore_eos": (True,), "max_reasoning_tokens": (None, 5),
}  # fmt: skip


@pytest.fixture(scope="module")
def baseline() -> Iterator[TransformersEngine]:
    with TransformersEngine(None, None, "test", {"max_model_len": 64}) as engine:
        yield engine


@pytest.fixture(scope="module")
def masked() -> Iterator[DiffusionEngine]:
    with DiffusionEngine(None, None, "test", {"max_model_len": 64}) as engine:
        yield engine


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


def refusal(make: Callable[..., object], **values: Any) -> str:
    """What is said of the values, "" if they are taken."""
    try:
        make(**values)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", [field.name for field in fields(Sampling)])
def test_any_value_is_taken_or_named(name: str) -> None:
    found = {i: refusal(Sampling, **{"temperature": 1.0, name: JUNK[i]}) for i in range(len(JUNK))}
    for reason in filter(None, found.values()):
        assert reason.startswith(f"{name}=")
        assert ": must be " in reason
        assert len(reason.splitlines()) == 1
    assert repr([JUNK[i] for i in found if not found[i]]) == repr(list(TAKEN[name]))


@pytest.mark.parametrize("name", [field.name for field in fields(Denoising)])
def test_any_setting_of_denoising_is_taken_or_named(name: str) -> None:
    for value in JUNK:
        reason = refusal(Denoising, **{name: value})
        assert reason.startswith(f"{name}=") or type(value) in {int, float, type(None)}


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Traffic(("a",), lengths=5), "lengths"),  # type: ignore[arg-type]
        (lambda: Traffic(np.array([1, 2])), "prompts"),  # type: ignore[arg-type]
        (lambda: Wording(chat=None), "chat"),  # type: ignore[arg-type]
        (lambda: SlurmJob("a", 1, "4G", "1:00:00", container=5), "container"),  # type: ignore[arg-type]
        (lambda: RandomValue(1, 10**400), "high"),
        (lambda: Random(2, ["a"]), "of="),  # type: ignore[arg-type]
        (lambda: Grid(product=["a"]), "product"),  # type: ignore[arg-type]
        (lambda: Grid(list=3), "list"),  # type: ignore[arg-type]
        (lambda: Grid(random={"points": 3}), "random"),  # type: ignore[arg-type]
    ],
)
def test_other_settings_of_a_wrong_kind(make: Any, match: str) -> None:
    with pytest.raises(InputError, match=match):
        make()


def test_whole_numbers_written_as_fractions_have_a_remedy() -> None:
    with pytest.raises(InputError, match=r"max_tokens=16\.0: must be .*, such as 16"):
        Sampling(max_tokens=16.0)  # type: ignore[arg-type]


def test_numbers_and_texts_of_a_table_are_the_same_request() -> None:
    table = pd.DataFrame({"t": np.array([0.9, 0.7], "float32"), "n": [3, 2], "stop": ["a", "b"]})
    row: Any = table.iloc[0]
    schema = {"maximum": np.int64(3), "enum": np.array([1.5, 2.0])}
    given: Any = {
        "temperature": row["t"], "n": table["n"][0], "max_tokens": np.int8(4), "seed": np.uint64(7),
        "top_p": np.float16(0.5), "min_p": Fraction(1, 4), "stop": table["stop"],
        "json_schema": schema, "ignore_eos": np.True_,
    }  # fmt: skip
    plainly = Sampling(
        temperature=0.9, n=3, max_tokens=4, seed=7, top_p=0.5, min_p=0.25, stop=("a", "b"),
        json_schema={"maximum": 3, "enum": [1.5, 2.0]}, ignore_eos=True,
    )  # fmt: skip
    made = Sampling(**given)
    assert repr(made) == repr(plainly)
    assert json.dumps(made.canonical()) == json.dumps(plainly.canonical())
    assert Sampling(choices=np.array(["x", "y"])).choices == ("x", "y")  # type: ignore[arg-type]
    assert json.dumps(Sampling(temperature=1).canonical()) == json.dumps(
        Sampling(temperature=1.0).canonical()
    )


REFUSED: list[dict[str, Any]] = [
    {"temperature": 5}, {"logprobs": 21}, {"regex": "("}, {"regex": "(?<=a)b"}, {"regex": "\x00"},
    {"json_schema": {"type": "nonsense"}}, {"json_schema": {"$ref": "#/nowhere"}},
    {"json_schema": {"type": "integer", "minimum": 5, "maximum": 1}},
    {"json_schema": {"type": "array", "minItems": 10**9}},  # would end this process
    {"json_schema": {"enum": ["\ud800"]}},
]  # fmt: skip


@pytest.mark.parametrize("wrong", REFUSED)
def test_what_vllm_refuses_is_refused_before_anything_runs(
    plain: VLLMEngine, wrong: dict[str, Any]
) -> None:
    for seed in (None, 3):
        sampling = Sampling(**({"temperature": 0.5, "seed": seed} | wrong))
        with pytest.raises(InputError) as caught:
            plain.generate(["1+1=", "2+2="], sampling)
        assert len(str(caught.value).splitlines()) == 1
        with pytest.raises(InputError):
            list(plain.stream(["1+1="], sampling))
    assert plain.llm.llm_engine.get_num_unfinished_requests() == 0
    (row,) = plain.generate(["1+1="], Sampling(max_tokens=2))
    assert row.error is None


ODD: list[dict[str, Any]] = [
    {"temperature": 1e-300}, {"temperature": 2}, {"top_k": 2**63 - 1}, {"seed": 2**64 - 1},
    {"max_tokens": 2**63 - 1}, {"min_p": 1}, {"top_p": 1e-300}, {"logprobs": 20},
    {"stop": [f"{i}x" for i in range(2000)]}, {"stop": ["a" * 100_000]},
]  # fmt: skip


def test_odd_values_work_on_every_engine(
    plain: VLLMEngine, baseline: TransformersEngine, masked: DiffusionEngine
) -> None:
    engines: list[Engine] = [baseline, masked, plain]
    for odd in ODD:
        sampling = Sampling(**({"temperature": 1.0, "max_tokens": 3} | odd))
        for engine in engines[: 2 if "max_tokens" in odd else 3]:
            assert engine.generate(["1+1="], sampling)[0].error is None
    cold = Sampling(max_tokens=8, temperature=1e-300)
    for engine in (baseline, plain):
        (drawn,), (greedy,) = (engine.generate(["1+1="], s) for s in (cold, Sampling(max_tokens=8)))
        assert drawn.text == greedy.text


def test_more_likeliest_tokens_than_there_are(
    baseline: TransformersEngine, masked: DiffusionEngine
) -> None:
    for engine in (baseline, masked):
        with pytest.raises(InputError, match="logprobs=5000"):
            engine.generate(["1+1="], Sampling(logprobs=5000))


@pytest.mark.parametrize(
    ("wanted", "text", "finish", "right"),
    [
        ({"choices": ("yes", "yesterday")}, "yes", "length", False),  # of which of them?
        ({"choices": ("yes", "yesterday")}, "yes", "stop", True),
        ({"choices": ("yes", "no")}, "yes", "length", True),
        ({"json_schema": {"type": "integer"}}, "12", "length", False),
        ({"json_schema": {"type": "integer"}}, "12", "stop", True),
        ({"json_schema": {}, "stop": ("}",)}, '{"a": 1', "stop", False),
        ({"json_schema": {}, "stop": ("x",)}, '{"a": 1}', "stop", True),
        ({"choices": ("yes", "yesterday")}, "yest", "length", False),
        ({"choices": ("yes", "yesterday")}, "yest", "stop", False),
        ({"regex": "[0-9]{3}"}, "123", "length", True),
        ({"regex": "[0-9]{3}"}, "12", "length", False),
        ({"regex": r"\p{Lu}+"}, "ÄB", "length", True),
        ({"regex": r"(\w+\s?)+\."}, "word " * 50, "length", False),  # takes forever
        ({"json_schema": {}}, '{"a": 1}', "length", True),
        ({"json_schema": {}}, '{"a": 1', "length", False),
        ({"json_schema": {}}, "[" * 100_000, "length", False),
        ({}, "any", "length", True),
    ],
)
def test_a_cut_answer_without_its_form(
    wanted: dict[str, Any], text: str, finish: str, right: bool
) -> None:
    reason = misshapen(Sampling(max_tokens=7, **wanted), text, finish)
    assert (reason is None) == right
    if finish == "length" and reason:
        assert "raise max_tokens (it was 7)" in reason


CUT: list[tuple[dict[str, Any], bool]] = [
    ({"choices": ("False", "Maybe"), "max_tokens": 1}, False),
    ({"choices": ("False", "Maybe"), "max_tokens": 16}, True),
    ({"regex": "[56]{3}", "max_tokens": 2}, False),
    ({"regex": "[56]{3}", "max_tokens": 3}, True),
    ({"json_schema": {"type": "object", "required": ["a"]}, "max_tokens": 2}, False),
]


def test_half_a_choice_is_a_failed_row_in_process(kept: VLLMEngine) -> None:
    for wanted, right in CUT:
        (row,) = kept.generate(["1+1="], Sampling(**wanted), errors="return")
        assert (row.error is None) == right
        assert row.text  # what there was of it
        if not right:
            assert row.finish_reason == "error"
            assert "raise max_tokens" in str(row.error)


def test_half_a_choice_of_a_server_is_a_failed_row() -> None:
    def say(asked: Asked) -> Said | None:
        if asked.method == "GET" and asked.path.endswith("/models"):
            return Said({"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 99}]})
        if asked.method == "GET":
            return plain(asked)
        cut = [
            choice("Fal", i, finish_reason="length") for i, _ in enumerate(prompts_of(asked.body))
        ]
        return Said(reply(*cut))

    with Stranger(say) as server:
        engine = open_engine("m", engine="remote", base_url=server.url, store=None)
        with engine:
            wanted: dict[str, Any]
            for wanted in ({"choices": ("False", "Maybe")}, {"json_schema": {"enum": ["x"]}}):
                (row,) = engine.generate(["1"], Sampling(**wanted), errors="return")
                assert (row.text, row.finish_reason) == ("Fal", "error")
                assert "raise max_tokens" in str(row.error)
            (row,) = engine.generate(["1"], Sampling(regex="Fa."), errors="return")
            assert (row.text, row.finish_reason, row.error) == ("Fal", "length", None)


def test_as_many_likeliest_tokens_as_asked_for(
    plain: VLLMEngine, baseline: TransformersEngine, masked: DiffusionEngine
) -> None:
    engines: list[Engine] = [plain, baseline, masked]
    unlikely = 0
    for engine in engines:
        for count in (0, 1, 3):
            hot = Sampling(max_tokens=8, temperature=2, seed=1, logprobs=count, ignore_eos=True)
            rows = engine.generate(["1+1=", "one two"], hot)
            found = [at for row in rows for at in row.logprobs or ()]
            assert len(found) == 16
            for at in found:
                values = [value for _, value in at.top]
                assert len(values) == count
                assert values == sorted(values, reverse=True)
                assert at.logprob <= max(values, default=0)
                if at.token_id in dict(at.top):
                    assert dict(at.top)[at.token_id] == pytest.approx(at.logprob)
                else:
                    unlikely += 1
    assert unlikely


def test_usage_is_added() -> None:
    one = Usage(requests=3, prompt_tokens=5, cached_tokens=2, seconds=1.5, peak_memory_bytes=7)
    other = Usage(requests=1, failed=1, cached_tokens=4, peak_memory_bytes=9)
    both = one + other
    assert both == Usage(
        requests=4, failed=1, prompt_tokens=5, cached_tokens=6, seconds=1.5, peak_memory_bytes=9
    )
    assert both.since(one) == replace(other, peak_memory_bytes=9)
    assert sum([one, other], Usage()) == both
    assert (one + Usage(cached_tokens=None)).cached_tokens is None  # not known of a part: of none
