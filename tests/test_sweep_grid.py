"""Grids and sweep files: which points there are, and what is refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from workbench.errors import InputError, WorkbenchError
from workbench.sweep import Grid, Random, RandomValue, Sweep
from workbench.sweep.grid import MOST, brief


def test_factors_are_multiplied_and_the_last_varies_first() -> None:
    grid = Grid(
        product={"a": [1, 2], "b": ["x", "y"]},
        zip={"c": [0.1, 0.2], "d": [10, 20]},
        list=[{}, {"e": None}],
    )
    points = grid.points
    assert len(points) == 2 * 2 * 2 * 2
    assert points[0] == {"a": 1, "b": "x", "c": 0.1, "d": 10}
    assert points[1] == {"a": 1, "b": "x", "c": 0.1, "d": 10, "e": None}
    assert points[-1] == {"a": 2, "b": "y", "c": 0.2, "d": 20, "e": None}
    assert all((point["c"], point["d"]) in {(0.1, 10), (0.2, 20)} for point in points)


def test_conditions_leave_points_out() -> None:
    grid = Grid(product={"shots": [0, 4, 8], "seed": [0, 1]}, where=["shots < 8 or seed == 0"])
    assert {(p["shots"], p["seed"]) for p in grid.points} == {
        (0, 0),
        (0, 1),
        (4, 0),
        (4, 1),
        (8, 0),
    }
    modes = Grid(list=[{"mode": "fast"}, {"mode": "full", "n": 3}], where=["n == 3"])
    assert modes.points == [{"mode": "full", "n": 3}]  # what has no n does not fulfil it
    both = Grid(product={"n": range(6)}, where=["n % 2 == 0", "n in (0, 2)"])
    assert [point["n"] for point in both.points] == [0, 2]


def test_random_points_are_those_of_their_seed() -> None:
    of: Any = {
        "rate": RandomValue(1e-4, 1.0, log=True),
        "k": RandomValue(1, 3),
        "mode": ["a", "b"],
        "x": RandomValue(0, 0.5),
    }
    one, same, other = (Grid(random=Random(200, of, seed)).points for seed in (0, 0, 1))
    assert one == same != other
    assert {point["k"] for point in one} == {1, 2, 3}
    assert {point["mode"] for point in one} == {"a", "b"}
    rates = sorted(float(str(point["rate"])) for point in one)
    assert 1e-4 <= rates[0] < 1e-3
    assert 0.1 < rates[-1] <= 1.0
    assert all(isinstance(point["x"], float) and point["x"] <= 0.5 for point in one)
    whole = Grid(random=Random(50, {"n": RandomValue(1, 1000, log=True)})).points
    assert all(isinstance(point["n"], int) and 1 <= point["n"] <= 1000 for point in whole)


def test_equal_points_are_one() -> None:
    assert Grid(list=[{"a": 1}, {"a": 1}]).points == [{"a": 1}]
    assert len(Grid(list=[{"a": 1}, {"a": 1.0}, {"a": True}]).points) == 3


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"product": {"a": []}}, r"a=\[\] must be a list of 1 value"),
        ({"product": {"a": "text"}}, "a='text' must be a list"),
        ({"product": {"a": 3}}, "a=3 must be a list"),
        ({"product": {c: range(10) for c in "abcdef"}}, r"the grid has 1,000,000 points"),
        ({"product": {"a": [1]}, "zip": {"a": [2]}}, "'a' is in two parts"),
        ({"zip": {"a": [1], "b": [1, 2]}}, "differ in length"),
        ({"list": [3]}, "3 is not a point"),
        ({"where": ["a <"]}, "not an expression"),
        ({"where": [3]}, "must be a text"),
        ({"where": ["__import__('os').remove('x')"]}, "has more than names"),
        ({"where": ["a.b == 1"]}, "has more than names"),
        ({"where": ["9 ** 9 ** 9 > 1"]}, "has more than names"),
        ({"where": ["[x for x in a]"]}, "has more than names"),
    ],
)
def test_a_misshapen_grid_is_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Grid(**parts)


def test_conditions_that_leave_nothing_or_cannot_be_judged_are_refused() -> None:
    with pytest.raises(InputError, match="no point of the grid fulfils"):
        _ = Grid(product={"a": [1]}, where=["a > 1"]).points
    with pytest.raises(InputError, match="cannot be evaluated for"):
        _ = Grid(product={"a": ["x"]}, where=["a > 1"]).points


@pytest.mark.parametrize(
    ("draw", "message"),
    [((2, 1), "must be below"), ((0, 1, True), "no logarithm"), (("a", 1), "must be numbers"),
     ((0.0, float("inf")), "must be below")],
)  # fmt: skip
def test_a_range_that_is_none_is_refused(draw: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RandomValue(*draw)


def test_random_points_need_a_number_and_a_parameter() -> None:
    with pytest.raises(InputError, match="points=0"):
        Random(0, {"a": [1]})
    with pytest.raises(InputError, match="names no parameter"):
        Random(1, {})
    with pytest.raises(InputError, match="a sweep takes"):
        Grid(random=Random(MOST + 1, {"a": [1]}))


@pytest.fixture
def write(points: Path) -> Any:
    """Writes a sweep file beside the notebook `point.ipynb` and reads it."""

    def read(text: str) -> Sweep:
        path = points / "mine.yaml"
        path.write_text(text)
        return Sweep.read(path)

    return read


def test_a_file_is_read_and_its_points_are_typed(write: Any) -> None:
    sweep = write(
        "notebook: point.ipynb\nproduct: {n: [1, 2], rate: [1e-3, 0.5]}\nseeds: 2\n"
        "fixed: {label: 7 items}\nwhere: n < 2 or seed == 0\n"
    )
    points = sweep.points
    assert sweep.name == "mine"
    assert len(points) == 6
    assert points[0].parameters == {"label": "7 items", "n": 1, "rate": 0.001, "seed": 0}
    assert len({point.key for point in points}) == len(points)
    assert points == write(Path(sweep.notebook.parent, "mine.yaml").read_text()).points


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "notebook: point.ipynb\nproducts: {n: [1]}",
            "no sweep key 'products', did you mean 'product'\\? Known: notebook",
        ),
        ("product: {n: [1]}", "give the notebook"),
        ("- a list", "not a sweep: give"),
        ("notebook: [", r"yaml:1: not valid YAML: .*; correct the file"),
        ("notebook: point.ipynb\nproduct: [1]", r"product: \[1\] must be names"),
        ("notebook: point.ipynb\nlist: {a: 1}", "must be a list of points"),
        ("notebook: point.ipynb\nrandom: {points: 3, over: {}}", "no key of random 'over'"),
        (
            "notebook: point.ipynb\nrandom: {points: 1, of: {n: {low: 1, most: 2}}}",
            "no key of random: n 'most'",
        ),
        ("notebook: point.ipynb\nrandom: {points: 1, of: {n: {low: 1}}}", "high"),
        ("notebook: point.ipynb\nseeds: -1", "seeds: -1"),
        ("notebook: point.ipynb\nseeds: [a]", "seeds: "),
        ("notebook: point.ipynb\ntimeout: soon", "timeout='soon'"),
        ("notebook: point.ipynb\ntimeout: 0", "timeout=0"),
        ("notebook: point.ipynb\nname: ../up", "name='../up'"),
        ("notebook: point.ipynb\nfixed: 3", "fixed: 3 must be names"),
        ("notebook: point.ipynb\nserve: 8b", "serve: '8b' must be names"),
        ("notebook: point.ipynb\nserve: 0", "serve: 0 must be names"),
        ("notebook: point.ipynb\nproduct: {n: [1], n: [2]}", "the key 'n' is given twice"),
        ("notebook: point.ipynb\nname: 5", "name=5"),
        ("notebook: point.ipynb\nkernel: 5", "kernel=5"),
        ("notebook: point.ipynb\nlist: [{1: 2}]", "is not a point"),
        ("notebook: point.ipynb\nwhere: {n: 2}", "must be a list of texts"),
        ("notebook: point.ipynb\nwhere: 5", "where"),
        ("notebook: point.ipynb\nseeds: 100000000000", "100,000,000,000 points"),
        ("notebook: point.ipynb\ntimeout: " + "9" * 400, "timeout="),
        ("notebook: point.ipynb\nfixed: {n: " + "9" * 5000 + "}", "give a YAML file"),
        ("notebook: point.ipynb\nlist: " + "[" * 2000, "give a YAML file"),
    ],
)
def test_a_file_with_a_mistake_is_refused_by_name(write: Any, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("notebook: point.ipynb\nproduct: {m: [1]}", "has no parameter 'm'; it has n, rate, seed"),
        ("notebook: point.ipynb\nproduct: {n: [one]}", "n='one' is not of the type int"),
        ("notebook: point.ipynb\nfixed: {state: CA}", "'state' cannot be varied"),
        ("notebook: model.ipynb\nfixed: {model: my model}", "is not a folder or hub name"),
        ("notebook: model.ipynb\nserve: {max_num_seqz: 3, api_key: s}", "api_key"),
        ("notebook: model.ipynb\nserve: {hf_token: s}", "set HF_TOKEN in the environment"),
        ("notebook: model.ipynb\nserve: {model: x}", "model cannot be given"),
        ("notebook: point.ipynb\nproduct: {n: [1.5]}", "n=1.5 is not of the type int"),
        ("notebook: absent.ipynb\nproduct: {n: [1]}", "absent.ipynb: No such file"),
        ("notebook: bare.ipynb", "has no cell tagged `parameters`"),
        ("notebook: point.ipynb\nproduct: {n: [1]}\nkernel: julia", "no Jupyter kernel 'julia'"),
        ("notebook: point.ipynb\nproduct: {n: [1]}\nfixed: {n: 1}", "'n' cannot be varied"),
        ("notebook: point.ipynb\nproduct: {seconds: [1]}", "'seconds' cannot be varied"),
        ("notebook: point.ipynb\nproduct: {serve.max_num_seqs: [1]}", "without `serve:`"),
        ("notebook: point.ipynb\nproduct: {n: [1]}\nserve: {}", "has no parameter 'engine'"),
    ],
)  # fmt: skip
def test_points_that_do_not_fit_the_notebook_are_refused(
    write: Any, text: str, message: str
) -> None:
    sweep = write(text)
    with pytest.raises(WorkbenchError, match=message):
        _ = sweep.points


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "product: {n: [1, 2]}\nfixed: {rate: 0.5}\nwhere: n < 2 or rate < 1",
            "where: 'n < 2 or rate < 1': 'rate' is fixed; what varies: n",
        ),
        (
            "product: {n: [1, 2]}\nseeds: 2\nwhere: [n < 2, sed == 0]",
            "'sed == 0': 'sed' is not in the grid, did you mean 'seed'\\?; what varies: n, seed",
        ),
        ("product: {n: [1, 2]}\nwhere: label == 'x'", "'label' is not in the grid; what varies: n"),
        ("fixed: {n: 1}\nwhere: n == 1", "'n' is fixed; what varies: nothing"),
    ],
)
def test_a_condition_in_what_does_not_vary_is_refused(write: Any, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _ = write(f"notebook: point.ipynb\n{text}\n").points


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (3, "3"),
        ("words in a row", "words in a row"),
        ("café 中", "café 中"),
        ("a" * 40, "a" * 40),
        ("a" * 41, "a" * 39 + "…"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\u202eback\u2028", "\\u202eback\\u2028"),
        ("\ud800", "\\ud800"),
        ("\n" * 99, "\\n" * 19 + "\\…"),
    ],
)
def test_a_value_is_one_short_line_on_a_terminal(value: object, shown: str) -> None:
    assert brief(value) == shown


def test_an_error_shows_a_point_in_one_line() -> None:
    with pytest.raises(InputError) as error:
        _ = Grid(product={"a": ["\x1b[2J\n" * 99]}, where=["a > 1"]).points
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 200


def test_points_that_come_to_the_same_are_one(write: Any) -> None:
    sweep = write("notebook: point.ipynb\nlist: [{n: 1, seed: 2}, {seed: 2, n: 1}]\n")
    assert len(sweep.points) == 1
    sweep = write("notebook: point.ipynb\nproduct: {rate: [1e-3, 0.001]}\nwhere: rate < 0.01\n")
    assert [point.parameters["rate"] for point in sweep.points] == [0.001]


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: No such file .*; give a YAML file"):
        Sweep.read(tmp_path / "none.yaml")
