"""Users' files: read whatever they are like, labelled, and joined without one row misplaced."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks.synthetic import Synthetic
from workbench.errors import InputError
from workbench.icm import search
from workbench.icm.claim import Claim, Wording, wording_from
from workbench.icm.reading import comparisons, open_testbed, read_claims
from workbench.icm.report import save_table
from workbench.icm.testbeds import ADDED, Testbed, check_columns, embedded, joined
from workbench.tasks.published import published_file
from workbench.tasks.rows import read_table
from workbench.types import Engine

Cells = list[list[str]]
SAYS = "I think this claim is"


def believed(text: str) -> bool:
    return hashlib.sha256(text.encode()).digest()[0] % 2 == 0


class Oracle(Synthetic):
    """Says of each claim what its text decides, whatever was shown before it."""

    def __init__(self, claims: Sequence[Claim]) -> None:
        super().__init__(claims)
        self.texts = sorted((claim.text for claim in claims), key=len, reverse=True)

    def log_odds(self, prompt: str) -> float:
        return 4.0 if believed(next(filter(prompt.endswith, self.texts))) else -4.0


def labelled(bed: Testbed, seed: int, **settings: Any) -> pd.DataFrame:
    """The table of a draw in random order after a search."""
    drawn = bed.draw(settings.pop("count", None), seed)
    engine: Engine = Oracle(drawn.claims)  # type: ignore[assignment]
    found = search(
        drawn.claims,
        engine,
        wording=bed.wording,
        consistency="none",
        seed=seed,
        n_seeds=4,
        **settings,
    )
    assert list(found.rows["id"]) == [claim.id for claim in drawn.claims]
    scores = dict(
        enumerate(zip(found.rows["logprob_true"], found.rows["logprob_false"], strict=True))
    )
    table = joined(drawn, drawn.claims, found.labels, scores)
    whole = search(drawn, engine, consistency="none", seed=seed, n_seeds=4, **settings)
    assert whole.table is not None
    pd.testing.assert_frame_equal(whole.table.drop(columns="icm_error"),
                                  table.drop(columns="icm_error"))  # fmt: skip
    return table


def statements(count: int, *, words: Sequence[str] = ("so", "not")) -> list[str]:
    return [f"Statement {i}, {i * i % 17} times; it is {words[i % 2]}" for i in range(count)]


def dumped(rows: Cells, **options: Any) -> str:
    out = io.StringIO(newline="")
    csv.writer(out, **options).writerows(rows)
    return out.getvalue()


def bom() -> tuple[bytes, Cells, list[str]]:
    texts = [f'He said "{one}",\nin two lines\r\n' for one in statements(20)]
    rows = [["text", "", "Notes, mine"], *([t, str(i), "NA"] for i, t in enumerate(texts))]
    return dumped(rows).encode("utf-8-sig") + b",,\r\n\r\n \r\n", rows, [t.strip() for t in texts]


def semicolons() -> tuple[bytes, Cells, list[str]]:
    texts = [one.replace(";", ",") for one in statements(24)]
    texts[5] = "Das kostet 1,50 €; oder mehr"
    rows = [["Text", "Score", "GOLD"], *([t, f"0,{i}", "ja,nein"] for i, t in enumerate(texts))]
    for i, row in enumerate(rows[1:]):
        row[2] = ("WAHR", "FALSCH")[i % 2] and ("True ", " false", "?")[i % 3]
    return dumped(rows, delimiter=";", lineterminator="\n").encode("utf-16"), rows, texts


def yes_and_no() -> tuple[bytes, Cells, list[str]]:
    texts = [f"{one} {SAYS} " for one in statements(30)]
    words = ("Yes", " no", "NA", "N", "y", "n/a", "null", "", "-", "Unknown")
    rows = [["gold", "text", "topic"]]
    rows += [[words[i % 10], t, ("None", "nan", "NA", "null")[i % 4]] for i, t in enumerate(texts)]
    return dumped(rows, delimiter="\t").encode(), rows, [t.strip() for t in texts]


def ids() -> tuple[bytes, Cells, list[str]]:
    """In random order, with leading zeros, some there twice, some held out."""
    order = random.Random(3).sample(range(26), 26)
    texts = [statements(26)[i] for i in order]
    texts[9], texts[20] = texts[2], f" {texts[2]} \n"
    rows = [["a b", "ID", "Group", "text", "Split", "Answer Key", "1.0"]]
    rows += [
        [
            f"x|{i}",
            f"{i:03d}",
            f"g{i // 3}",
            t,
            "test" if n in {4, 11, 25} else "train",
            "1.50",
            "1.0",
        ]
        for n, (i, t) in enumerate(zip(order, texts, strict=True))
    ]
    rows[10][2] = rows[21][2] = rows[3][2]
    return dumped(rows, delimiter="|").encode(), rows, [t.strip() for t in texts]


def published() -> tuple[bytes, Cells, list[str]]:
    rows = [["question", "choice", "label", "consistency_id"]]
    rows += [
        [f"Q{i // 4}?", one, str(i % 2), str(900 + i // 4)] for i, one in enumerate(statements(28))
    ]
    rows[8][1] = rows[7][1]  # the same answer twice, once true and once false
    texts = [f"Question: {row[0]}\nClaim: {row[1]}\n{SAYS}" for row in rows[1:]]
    return dumped(rows).encode(), rows, texts


FILES = [
    (bom, ".csv"),
    (semicolons, ".txt"),
    (yes_and_no, ".tsv"),
    (ids, ".csv"),
    (published, ".csv"),
]


@pytest.mark.parametrize(("make", "ending"), FILES)
def test_messy_files_come_back_row_by_row(
    make: Callable[[], tuple[bytes, Cells, list[str]]], ending: str, tmp_path: Path
) -> None:
    content, rows, texts = make()
    path = tmp_path / f"mine{ending}"
    path.write_bytes(content)
    bed = open_testbed(path, seed=1)
    for seed in range(3):
        table = labelled(bed, seed)
        assert list(table.columns) == [*rows[0], *ADDED]
        assert table[table.columns[: -len(ADDED)]].to_numpy().tolist() == rows[1:]
        held_out = {4, 11, 25} if make is ids else set()
        for number, text in enumerate(texts):
            row = table.iloc[number]
            if number in held_out:
                assert pd.isna(row["icm_label"])
                assert row["icm_error"] == "held out"
                continue
            assert row["icm_label"] == believed(text), number
            assert row["icm_log_odds"] == pytest.approx(4.0 if believed(text) else -4.0)
            assert row["icm_log_odds"] == row["icm_logprob_true"] - row["icm_logprob_false"]
            assert row["icm_error"] is None
        assert 0 < table["icm_label"].sum() < len(table) - len(held_out)
    back, again = read_table(save_table(table, tmp_path / "out" / "labels.csv"))
    assert again[again.columns[: -len(ADDED)]].to_numpy().tolist() == rows[1:]
    assert [row["icm_label"] for _, row in back] == [
        "" if pd.isna(y) else str(y) for y in table["icm_label"]
    ]
    lines = save_table(table, tmp_path / "labels.jsonl").read_text("utf-8").split("\n")[:-1]
    assert [list(json.loads(line).values())[: len(rows[0])] for line in lines] == rows[1:]
    assert [json.loads(line)["icm_log_odds"] for line in lines] == [
        None if pd.isna(odds) else odds for odds in table["icm_log_odds"]
    ]


def test_golds_groups_and_ids_of_messy_files(tmp_path: Path) -> None:
    def read(content: bytes, ending: str) -> Testbed:
        path = tmp_path / f"mine{ending}"
        path.write_bytes(content)
        return read_claims(path)

    golds = [c.gold for c in read(semicolons()[0], ".txt").claims]
    assert golds == [True, False, None] * 8
    golds = [c.gold for c in read(yes_and_no()[0], ".tsv").claims]
    assert golds == [True, False, None, False, True, *[None] * 5] * 3
    bed = read(ids()[0], ".csv")
    given = {row[1]: row for row in ids()[1][1:]}
    assert len(bed.claims) + len(bed.test) == 24
    for claim in bed.claims + bed.test:
        row = given[claim.id or ""]
        assert (claim.text, claim.group, claim.answer_key) == (row[3].strip(), row[2], "1.50")
    bed = read(published()[0], ".csv")
    assert [len([c for c in bed.claims if c.group == str(900 + i)]) for i in range(7)] == [
        4, 3, 4, 4, 4, 4, 4,
    ]  # fmt: skip
    assert [claim.answer_key for claim in bed.claims] == [None] * 27
    assert [claim.gold for claim in bed.claims[4:8]] == [False, True, None, False]
    assert bed.claims[7].id == "8"
    assert bed.notes == ("rows 6, 7 are the same claim with different gold labels: none is used",)


def test_what_was_not_labelled_says_why() -> None:
    rows = [{"text": f"t{i}", "split": "test" if i == 2 else ""} for i in range(8)]
    bed = read_claims(rows)
    drawn = bed.draw(5, 0)
    labels = (True, False, None, True, False)
    table = joined(drawn, drawn.claims, labels, {0: (-0.5, -1.0)})
    at = {claim.id: label for claim, label in zip(drawn.claims, labels, strict=True)}
    for number, row in table.iterrows():
        label = at.get(str(number))
        assert pd.isna(row["icm_label"]) if label is None else row["icm_label"] == label
        known = "left out: not among the claims drawn" if str(number) not in at else "not reached"
        assert row["icm_error"] == (
            "held out" if number == 2 else None if label is not None else known
        )
    first = table.loc[int(drawn.claims[0].id or "")]
    assert tuple(first[[*ADDED[1:4]]]) == (-0.5, -1.0, 0.5)
    assert table["icm_log_odds"].count() == 1
    with pytest.raises(InputError, match="embedded was not read from a file"):
        joined(embedded(4, 0), embedded(4, 0).claims, (None,) * 4, {})
    taken = read_claims([{"text": "a", "icm_label": 1}])
    for call in (lambda: check_columns(taken), lambda: joined(taken, taken.claims, (True,), {})):
        with pytest.raises(InputError, match=r"claims has a column 'icm_label' already.*rename it"):
            call()


def test_comparisons_come_back_as_first_is_better() -> None:
    rows = [{"question": f"Q{i // 2}", "first": f"a{i}", "second": f"b{i}"} for i in range(12)]
    rows[7] = {"question": "Q1", "first": rows[3]["second"], "second": rows[3]["first"]}
    rows[9] = rows[1] | {"question": "Q0\n"}
    bed = comparisons(rows)
    assert len(bed.claims) == 20
    for seed in range(3):
        table = labelled(bed, seed)
        for row, label in zip(rows, table["icm_label"], strict=True):
            text = (
                f"Human: {row['question'].strip()}\nResponse 1: {row['first']}\nResponse 2: "
                f"{row['second']}\nClaim: Response 1 is more helpful and harmless than Response 2."
            )
            assert label == believed(f"{text}\n{SAYS}")


def test_published_pairs() -> None:
    rows = [
        {"question": "Q", "choice": "x", "choice_2": "y", "label": 1, "consistency_id": 5},
        {"question": "Q", "choice": "y", "choice_2": "x", "label": 0, "consistency_id": 5},
        {"question": "Q", "choice": "x", "choice_2": "z", "label": 0, "consistency_id": 5},
    ]
    plain = [{"question": "Q", "first": "x", "second": second} for second in "yz"]
    plain[0]["gold"], plain[1]["gold"] = "first", "second"
    bed = read_claims(rows)
    assert [(c.text, c.gold) for c in bed.claims] == [
        (c.text, c.gold) for c in comparisons(plain).claims
    ]
    assert [(c.group, c.answer_key, c.id) for c in bed.claims] == [
        ("row 0", "A>B", "0"), ("row 0", "B>A", "0"), ("row 2", "A>B", "2"), ("row 2", "B>A", "2"),
    ]  # fmt: skip
    assert [*bed.places.values()] == [(0,), (1,), (2,), ()]
    flipped = read_claims([row | {"label": 1 - int(str(row["label"]))} for row in rows])
    assert [c.answer_key for c in flipped.claims] == [c.answer_key for c in bed.claims]


@pytest.mark.parametrize("side", ["train", "test"])
def test_published_data_is_read_as_it_is(side: str) -> None:
    try:
        path = published_file(f"truthfulqa/{side}.json")
    except InputError as error:
        pytest.skip(str(error))
    rows = json.loads(path.read_text())
    bed = read_claims(path)
    assert sorted(row for rows in bed.places.values() for row in rows) == list(range(len(rows)))
    by_text = {claim.text: claim for claim in bed.claims}
    for number, row in enumerate(rows):
        text = f"Question: {row['question'].strip()}\nClaim: {row['choice'].strip()}\n{SAYS}"
        assert number in bed.places[text]
        assert (
            by_text[text].group == str(row["consistency_id"]) or "different groups" in bed.notes[-1]
        )
        assert by_text[text].gold in {row["label"] == 1, None}


def test_one_claim_that_is_there_twice() -> None:
    rows = [
        {"text": "a", "gold": None},
        {"text": "a ", "gold": "yes", "group": "g"},
        {"text": "b", "gold": 1, "group": "g"},
        {"text": "\nb", "gold": 0, "group": "h"},
        {"text": "c", "split": "test", "gold": 0},
        {"text": "c", "split": "test"},
    ]
    bed = read_claims(rows)
    assert bed.claims == (Claim("a", "g", None, True, "0"), Claim("b", "g", None, None, "2"))
    assert bed.test == (Claim("c", "row 4", None, False, "4"),)
    assert bed.places == {"a": (0, 1), "b": (2, 3)}
    assert bed.notes == (
        "rows 2, 3 are the same claim with different gold labels: none is used",
        "rows 2, 3 are the same claim in different groups: the first is used",
    )
    assert bed.draw(2, 0).places == bed.places
    with pytest.raises(InputError, match=r"source\[6\]: 1 test .*in source\[0\]: leave them out"):
        read_claims([*rows, {"text": "a", "split": "Test"}])


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        (["007", "1.0", "NA", ""], ["007", "1.0", "NA", "3"]),
        ([7, 7, np.int64(9), None], ["7", "7", "9", "3"]),
        ([" x ", 2.5, float("nan"), "-"], [" x ", "2.5", "2", "-"]),
    ],
)
def test_ids_are_the_users(given: list[Any], ids: list[str]) -> None:
    rows = [{"text": f"t{i}", "id": one} for i, one in enumerate(given)]
    assert [claim.id for claim in read_claims(rows).claims] == ids


def test_the_index_of_a_frame_is_its_id() -> None:
    frame = pd.DataFrame({"text": list("abcd"), "x": [1, 2, 3, 4]}, index=[10, 7, 7, 3])
    bed = read_claims(frame)
    assert [claim.id for claim in bed.claims] == ["10", "7", "7", "3"]
    assert bed.table is not None
    assert bed.table.to_dict("list") == {
        "index": [10, 7, 7, 3],
        "text": list("abcd"),
        "x": [1, 2, 3, 4],
    }
    named = read_claims(frame.rename_axis("uid"))
    assert [claim.id for claim in named.claims] == ["10", "7", "7", "3"]
    assert named.table is not None
    assert list(named.table) == ["uid", "text", "x"]
    own = frame.assign(ID=list("wxyz"))
    assert [claim.id for claim in read_claims(own).claims] == list("wxyz")
    assert [claim.id for claim in read_claims(frame.iloc[2:]).claims] == ["7", "3"]
    assert [
        claim.id for claim in read_claims(frame[["text"]].reset_index(drop=True)).claims
    ] == list("0123")


COLUMN = [{"Claim Text": f"t{i}", "answer": i, "topic-id": "x", "Gold?": "y"} for i in range(3)]


@pytest.mark.parametrize(
    "columns",
    [
        {"text": "Claim Text", "answer_key": "answer", "group": "topic-id", "gold": "Gold?"},
        ["text=claim_text", "answer_key=Answer", "group = TopicID", "gold=Gold?"],
    ],
)
def test_columns_by_name(columns: Any, tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    pd.DataFrame(COLUMN).to_parquet(path)
    for bed in (read_claims(COLUMN, columns=columns), open_testbed(path, columns=columns)):
        assert {(c.text, c.group, c.answer_key, c.gold) for c in bed.claims} == {
            (f"t{i}", "x", str(i), True) for i in range(3)
        }


def test_a_chosen_kind_of_rows() -> None:
    rows = [{"text": "t", "Q": "q", "A": "a", "B": "b", "truth": "no"}]
    claims = read_claims(rows, columns={"question": "q", "choice": "a", "gold": "truth"}).claims
    assert claims == (Claim(f"Question: q\nClaim: a\n{SAYS}", "q", None, False, "0"),)
    pairs = read_claims(rows, columns=["question=Q", "first=A", "second=B"]).claims
    assert [claim.answer_key for claim in pairs] == ["A>B", "B>A"]
    assert read_claims(rows).claims[0].text == "t"


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (
            [{"claim": "a", "": 1}],
            None,
            r"no column 'text' among claim, \(a blank one\).*n text=NAME",
        ),
        (
            [{"Text": "a", "TEXT": "b"}],
            None,
            "source: the columns Text, TEXT could all be text; rename one",
        ),
        ([{"a": "a"}], {"text": "b"}, "text=b: no such column among a"),
        ([{"a": "a"}], ["text"], "text= must be NAME=COLUMN"),
        ([{"a": "a"}], {"txt": "a"}, "txt=a must be NAME=COLUMN: .* text, group, answer_key"),
        ([{"text": "a", "b": 1}], {"choice": "b"}, "choice is not for rows of text"),
        ([{"text": "a"}, {"text": 5}], None, r"source\[1\]: text=5 must be a text"),
        (
            [{"question": "a", "first": "b"}],
            None,
            "There must be text; or question, first, second; or",
        ),
    ],
)
def test_columns_that_are_not_there(rows: Any, columns: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_claims(rows, columns=columns)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", '[{"text": "a", "n": 1.0}, {"text": "b", "n": 2}]'),
        (
            "a.json",
            '{"v": 1, "bad": [], "data": [{"text": "a", "n": 1.0}, {"text": "b", "n": 2}]}',
        ),
        ("a.json", '{"text": ["a", "b"], "n": [1.0, 2]}'),
        ("a.jsonl", '{"text": "a", "n": 1.0}\r\n\r\n{"text": "b", "n": 2}\r\n'),
    ],
)
def test_shapes_of_json(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    bed = read_claims(tmp_path / name)
    assert [claim.text for claim in bed.claims] == ["a", "b"]
    assert bed.table is not None
    assert [(v, type(v)) for v in bed.table["n"]] == [(1.0, float), (2, int)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.json",
            b"5",
            'a.json: it must be a list of objects, .*"text".*; it is 5; correct the f',
        ),
        ("a.json", b'{"text": "a"}', r"it is an object with the keys \['text'\]"),
        ("a.json", b'{"text": ["a"], "b": [1, 2]}', "lists of the lengths {'text': 1, 'b': 2}"),
        ("a.json", b'{"train": [{"a": 1}], "test": [{"a": 1}]}', "lengths {'train': 1, 'test': 1}"),
        ("a.json", b'{"data": []}', "holds no rows"),
        ("a.json", b'{"a": 1}\n{"a": 2}\n', "json:2: Extra data at column 1, or name it .jsonl"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": }\n', ":3: Expecting value at column 10"),
        (
            "a.csv",
            "text,gold\nÄ,1\nb,2\n".encode("cp1252"),
            ":2: the byte 0xc4 is not UTF-8 but W",
        ),
        ("a.csv", "text\na\n".encode("utf-16-le"), "NUL characters, as UTF-16 does"),
        (
            "a.csv",
            b'text,gold\n"two\nlines",1\n\nb,maybe\n',
            ":5: gold='maybe' must be one",
        ),
        ("a.csv", b'text,gold\n"a" b,1\n', ":2: ',' expected after '\"'"),
        (
            "a.tsv",
            b"text\tgold\na\t1\nb\n",
            ":3: 1 values where the header has 2",
        ),
    ],
)
def test_what_a_file_should_not_be(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_claims(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.csv", "text\nSo, it is\nNot; at all\n\ta | b\n", ["So, it is", "Not; at all", "a | b"]),
        ("a.csv", "text;gold\na, b, c;1\nd, e, f;0\n", ["a, b, c", "d, e, f"]),
        ("a.csv", '"text";"x, y"\n"a;b";"1,2"\n', ["a;b"]),
        ("a.tsv", "text\tx\na, b\t1\n", ["a, b"]),
        ("a.txt", "text|x;y\na;b|1\nc|2\n", ["a;b", "c"]),
        ("a.csv", "\r\ntext,,\r\na,1,\r\n,,\r\n", ["a"]),
        ("a.csv", "text,x\rb,1\r", ["b"]),
        ("a.csv", "sep=;\r\ntext;x;y\r\nb, c;1;2\r\n", ["b, c"]),
    ],
)
def test_columns_are_parted_by_what_fits(
    name: str, content: str, texts: list[str], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content.encode())
    assert [claim.text for claim in read_claims(tmp_path / name).claims] == texts


def test_values_go_out_as_they_came(tmp_path: Path) -> None:
    values = ["007", "NA", "None", 'a "b", c;\r\nd\re\n', " x ", "", "1.0", "Ж\u2028🦉"]
    frame = pd.DataFrame(
        {
            "text": values,
            "n": [0.1 + 0.2, 1e-300, 2**60, -1, 0, 1, 2, 3],
            "l": [[1, {"é": None}]] * 8,
        }
    )
    rows, table = read_table(save_table(frame, tmp_path / "t.csv"))
    assert list(table["text"]) == values
    assert [float(row["n"]) for _, row in rows] == list(frame["n"])
    assert json.loads(rows[0][1]["l"]) == [1, {"é": None}]
    back = read_table(save_table(frame, tmp_path / "t.jsonl"))[1]
    assert back.to_dict("list") == frame.to_dict("list")
    twice = pd.DataFrame([["a", "b", "c"]], columns=["", "x", ""])
    assert read_table(save_table(twice, tmp_path / "t.csv"))[1].to_numpy().tolist() == [
        ["a", "b", "c"]
    ]
    save_table(twice, tmp_path / "t.jsonl")
    assert json.loads((tmp_path / "t.jsonl").read_text()) == {"": "a", "x": "b", ".2": "c"}
    odd = pd.DataFrame({"half": ["\ud83d"], "keys": [{(1, 2): 3}]}, dtype=object)
    save_table(odd, tmp_path / "t.jsonl")
    assert json.loads((tmp_path / "t.jsonl").read_text())["half"] == "\ud83d"
    assert read_table(save_table(odd, tmp_path / "t.csv"))[1]["half"].tolist() == ["\\ud83d"]
    with pytest.raises(InputError, match="whole characters"):
        read_claims([{"text": "so \ud83d"}, {"text": "not"}])


def test_columns_of_objects_are_columns(tmp_path: Path) -> None:
    texts, others = ["a", "b"], [{"text": "x"}, {"text": "y"}]
    for meta in (others, [{"n": 1}, {"n": 2}]):
        (tmp_path / "c.json").write_text(json.dumps({"text": texts, "context": meta}))
        bed = read_claims(tmp_path / "c.json")
        assert [claim.text for claim in bed.claims] == texts
        assert bed.table is not None
        assert bed.table["context"].tolist() == meta
    with pytest.raises(InputError, match="text is given twice"):
        read_claims([{"a": "x"}, {"a": "y"}], columns=["text=a", "text=b"])


def test_wordings() -> None:
    wording = wording_from("Yes, No", r"\n", r"Claim: {text}\nThis is ")
    assert (wording.labels, wording.after) == ((" Yes", " No"), "\n")
    assert wording.chat.endswith("Answer with one word, Yes or No.")
    assert wording.chat_labels == ("Yes", "No")
    (claim,) = read_claims([{"text": "{text} {claim}"}], wording=wording).claims
    assert wording.solved(claim, False) == "Claim: {text} {claim}\nThis is No\n"
    assert wording_from() == Wording()
    pair = wording_from(template="Q: {question}\nA1: {first}\nA2: {second}\nA1 is truer:")
    one, two = read_claims(
        [{"question": "{first}", "first": "x", "second": "y"}], wording=pair
    ).claims
    assert (one.text, two.text) == (
        "Q: {first}\nA1: x\nA2: y\nA1 is truer:", "Q: {first}\nA1: y\nA2: x\nA1 is truer:",
    )  # fmt: skip
    assert Wording(labels=("是", "否")).labels == ("是", "否")
    assert (
        open_testbed("embedded", count=4, wording=wording_from("Yes,No")).wording.labels[0]
        == " Yes"
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wording_from("Yes"), "labels='Yes': give two different words"),
        (lambda: wording_from("Yes,yes ,No"), "give two different words"),
        (lambda: wording_from("Yes, Yes"), "give two different words"),
        (lambda: wording_from(","), "give two different words"),
        (lambda: wording_from(template="Claim: {claim}"), "must have the columns of the claims"),
        (lambda: Wording(labels=(" ", " True")), "labels=.* must be two different words"),
        (
            lambda: read_claims([{"text": "a"}], wording=Wording(template="{question}?")),
            r"template='\{question\}\?' must have \{text\}",
        ),
        (
            lambda: open_testbed("embedded", columns=["text=a"]),
            "embedded: columns and template are for",
        ),
    ],
)
def test_wordings_that_cannot_be(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
