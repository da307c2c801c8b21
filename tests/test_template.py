"""Texts with fields in braces, and what is refused in them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from workbench.errors import InputError
from workbench.template import check, fields, fill


def test_fields_are_names_in_their_order() -> None:
    assert fields("{b} and {a}, {b}; {{c}} { d e }") == ("b", "a", "d e")


@pytest.mark.parametrize(
    ("template", "given", "text"),
    [
        ("Translate: {text}", {"text": "{not a field} {{"}, "Translate: {not a field} {{"),
        ('{{"q": "{q}"}}', {"q": "1+1"}, '{"q": "1+1"}'),
        ("{my column}|{0}|{a.b}", {"my column": 1, 0: 2.5, "a.b": True}, "1|2.5|True"),
        (
            "{n} {when}",
            {"n": np.int64(3), "when": pd.Timestamp("2024-01-02")},
            "3 2024-01-02 00:00:00",
        ),
        ("{a}{{{a}}}", {"a": "nan"}, "nan{nan}"),
        ("{a}", {"a": np.array(["é", "b"])}, '["é", "b"]'),
        ("{a}", {"a": np.zeros(1001, dtype=int)}, f"[{', '.join('0' * 1001)}]"),
        ("{a}", {"a": [1, None, {"k": np.array([1.5])}]}, '[1, null, {"k": [1.5]}]'),
        ("{a}", {"a": np.array([pd.Timestamp("2024")])}, '["2024-01-01 00:00:00"]'),
    ],
)
def test_values_stand_in_their_places(
    template: str, given: dict[object, object], text: str
) -> None:
    assert fill(template, given) == text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{qestion}", r"'qestion', did you mean 'question'\? known: question, id"),
        ("{question.__class__}", "a field is a plain name"),
        ("{question[0]}", "a field is a plain name"),
        ("{question!r:>10}", "a field is a plain name"),
        ("{}", "no field ''"),
        ('{"answer": 1}', "Write {{ and }} for literal braces"),
        ("{question", r"the \{ at character 0 is unmatched; write \{\{"),
        ("question} ", r"the \} at character 8 is unmatched"),
        ("Think.", r"has no field, .* such as \{question\}"),
        ("", "a text that is not empty"),
        (3, "a text that is not empty"),
    ],
)
def test_what_is_no_template_is_refused(template: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check(template, ["question", "id"], "prompt")


def test_a_chat_is_no_part_of_a_text() -> None:
    chat = [{"role": "user", "content": "Hi"}]
    for given in (chat, np.array(chat, dtype=object)):
        with pytest.raises(InputError, match=r"pass chats to engine\.generate"):
            fill("{a}", {"a": given})


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA, pd.NaT])
def test_a_missing_value_is_refused(missing: object) -> None:
    with pytest.raises(InputError, match="row 7: 'text' is missing"):
        fill("{text}", {"text": missing}, "row 7")
