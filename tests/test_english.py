"""The check of words: it finds each in every kind of file, and its list is that of the style."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tools import english

ROOT = Path(__file__).resolve().parent.parent
SAID = {
    "tell, told": ["It tells all.", "Unless not told:", "Hard to tell apart.", "telling"],
    "bear": ["It bears load.", "as many as it can bear"],
    "gladly": ["Gladly."],
    "mend": ["mended", "How to mend that."],
    "go on": ["It goes on.", "the run went on elsewhere", "going\non"],
    "come along": ["They come along."],
    "one's own": ["One's own agent", "one’s own"],
    "of its own": ["a process of its own", "rooms of their own"],
    "in the air": ["64 in the air"],
    "a most": ["with a most of 8"],
    "anew": ["drawn anew"],
    "vouch": ["what nothing vouches for"],
    "mercy": ["no mercy"],
    "nobody": ["Nobody reads it.", "nobody's"],
    "give up": ["It gives up.", "given up", "gave up"],
    "tokens a second, prompts an item": [
        "9 tokens a second", "ms a prompt", "2 prompts a\nrequest", "six options a question",
        "it answers a second", "4 bits a weight",
    ],
}  # fmt: skip
FINE = (
    "Authorization: Bearer, bearable, recommend, mendacious, told_apart = storyteller",
    "It asks a second time, writes an item, makes a prompt, has a row and needs a second.",
    "samples a second time; what is on, going one by one; a mostly full batch; renewal; on its own",
)


def words(text: str, path: str = "docs/page.md") -> list[str]:
    return [found.word for found in english.findings(path, text)]


def test_the_style_has_the_same_rows() -> None:
    text = (ROOT / "docs/style.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (.+) \| (.+) \|$", text.partition("| thing |")[0], re.MULTILINE)
    assert table[1:] == [(use, name) for name, (use, _) in english.WORDS.items()]


def test_each_word_is_found_and_no_other() -> None:
    assert list(SAID) == list(english.WORDS)
    for name, texts in SAID.items():
        for text in texts:
            found = english.findings("docs/page.md", text)
            assert [one.use for one in found] == [english.WORDS[name][0]], text
    for text in FINE:
        assert words(text) == []


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("x = 1  # which\n# goes on\n", 2, "goes on"),
        ("#: a run that goes\n#: on\n", 0, ""),  # no comment of ours begins so
        ("# a run that goes\n# on\n", 1, "goes # on"),
        ('print("done\\ntold")\n', 1, "told"),
        ('say(\n    "a process of "\n    f"its own"\n)\n', 2, 'of " f"its own'),
        ("> as many as are in\n> the air\n", 1, "in > the air"),
    ],
)
def test_a_word_is_found_over_the_end_of_a_line(text: str, line: int, word: str) -> None:
    found = english.findings("tools/x.py", text)
    assert [(one.line, one.word) for one in found] == ([(line, word)] if line else [])


def notebook() -> str:
    """Each kind of cell has a word; a picture, which is no text, has one too."""
    picture = {"image/png": "iVBOR/told/w0KGgo=", "text/plain": ["<Figure>\n", "gladly"]}
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "It goes\n", "on."]},
        {
            "cell_type": "code",
            "outputs": [
                {"output_type": "stream", "text": ["all is well\n", "64 in the air\n"]},
                {"output_type": "display_data", "data": picture},
            ],
            "source": ["x = 1  # mended\n", "x"],
        },
    ]
    return json.dumps({"cells": cells, "nbformat": 4}, indent=1)


def test_a_notebooks_texts_code_and_outputs_are_read_by_their_lines() -> None:
    text = notebook()
    found = english.findings("notebooks/x.ipynb", text)
    assert [one.word.split()[0] for one in found] == ["goes", "in", "gladly", "mended"]
    lines = text.splitlines()
    for one in found:
        assert one.word.split()[0] in lines[one.line - 1]


PLANTED = {
    "workbench/a.py": '"""It tells."""\n', "workbench/judge/a.txt": "Gladly.\n",
    "workbench/a.j2": "anew\n", "workbench/a.sh": "# nobody\n", "tools/a.py": "# mended\n",
    "benchmarks/a.py": "# gave up\n", "docs/a.md": "in the air\n", "requirements/a.in": "# anew\n",
    "notebooks/a.ipynb": notebook(), "notebooks/sweeps/a.yaml": "# told\n",
    "Makefile": "a: ## a most of 3\n", "pyproject.toml": "# mercy\n", "README.md": "vouch\n",
    "CONTRIBUTING.md": "One's own.\n", "CHANGELOG.md": "It bears this.\n",
}  # fmt: skip


def test_a_word_in_any_file_is_printed_and_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(english, "ROOT", tmp_path)
    for top in english.PATHS:
        (tmp_path / top).mkdir() if "." not in top and top != "Makefile" else None
    for name, text in PLANTED.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for ignored in ("notebooks/runs/a.md", "workbench/__pycache__/a.py", "docs/a.png"):
        path = tmp_path / ignored
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("told\n")
    for name in set(english.PATHS) - set(PLANTED):
        if "." in name:
            (tmp_path / name).write_text("Fine.\n")
    assert english.main() == 1
    printed = capsys.readouterr().out.splitlines()
    assert {line.split(":")[0] for line in printed} == set(PLANTED)
    assert "docs/a.md:1: in the air -> use in flight" in printed
    assert english.main(["workbench/a.py"]) == 1
    (tmp_path / "workbench/a.py").write_text('"""It says."""\n')
    assert english.main(["workbench/a.py"]) == 0
    with pytest.raises(SystemExit, match="does not exist"):
        english.main(["workbench/b.py"])


def test_what_is_allowed_is_there_and_needed() -> None:
    for file, text, reason in english.ALLOWED:
        whole = (ROOT / file).read_text(encoding="utf-8")
        assert text in whole, file
        assert words(text), f"{file}: {text} needs no exception"
        assert words(f"{text} and told", file) == ["told"]  # in that file no other is let through
        assert words(text, "docs/page.md")  # nor this one elsewhere
        assert reason


def test_tables_of_old_names_are_left_out() -> None:
    row = "| told (command) | command_group |\n"
    for file in english.TABLES:
        assert words(f"{row}It tells.\n", file) == ["tells"]
    assert words(row) == ["told"]
