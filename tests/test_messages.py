"""Messages in parts: texts and images, from the prompt to the server, the store and the report."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from stranger import Asked, Said, Stranger
from test_strangers import remote

from workbench import Sampling, evaluate
from workbench.agents.methods import yes_or_no
from workbench.agents.program import AgentCase
from workbench.engines.chat import ChatOptions, chat_text
from workbench.engines.estimate import estimated_tokens, most_tokens
from workbench.engines.requests import check_prompts
from workbench.errors import InputError
from workbench.messages import IMAGE, plain_content, shown, text_of
from workbench.store import open_store
from workbench.tasks import WordProblems
from workbench.tiny import MODEL
from workbench.types import Item, Prompt, PromptStyle

SHORT = Sampling(max_tokens=8)
RED = Image.new("RGB", (2, 2), "red")


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image(source: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": source}}


def chat(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def test_contents_become_json(tmp_path: Path) -> None:
    RED.save(tmp_path / "red.png")
    address = image("https://example.org/a.png")
    sources = [tmp_path / "red.png", RED]
    prompt: Any = check_prompts([chat(text("What is it?"), address, *map(image, sources))])[0]
    assert json.loads(json.dumps(prompt)) == prompt
    words, first, *others = prompt[0]["content"]
    assert (words, first) == (text("What is it?"), address)
    for one in others:
        kind, _, data = one["image_url"]["url"].partition(";base64,")
        assert kind == "data:image/png"
        pixel = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB").getpixel((0, 0))
        assert pixel == (255, 0, 0)
    assert check_prompts([prompt]) == [prompt]
    short = {"type": "image_url", "image_url": "https://example.org/a.png"}
    assert plain_content([short], "it") == [address]
    cell = np.array([{**text("a"), "image_url": None}, {**address, "text": None}], dtype=object)
    assert plain_content(cell, "it") == [text("a"), address]
    plain = [{"role": "user", "content": "a"}]
    assert check_prompts([plain])[0] is plain


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([], "content is \\[\\]"),
        (5, "content is 5"),
        (["a"], "unknown part 'a'"),
        ([{"type": "text"}], "unknown part"),
        ([{"type": "input_audio", "input_audio": {}}], "unknown part .*input_audio"),
        ([image("file:///a.png")], "image 'file:///a.png'"),
        ([image(Path("no/such.png"))], "no/such.png.*No such file"),
        ([image(Path(__file__))], "test_messages.py"),
        ([image(None)], "image None"),
    ],
)
def test_an_unknown_part_is_named(content: Any, named: str) -> None:
    with pytest.raises(InputError, match=f"(?s)prompt 1.*{named}"):
        check_prompts([[{"role": "user", "content": "a"}], [{"role": "user", "content": content}]])


def test_templates_of_parts_get_parts() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    only_parts = (
        "{% for m in messages %}<{{ m['role'] }}>{% for p in m['content'] %}"
        "{% if p['type'] == 'text' %}{{ p['text'] }}{% endif %}{% endfor %}{% endfor %}"
    )
    both = (
        "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endif %}{% endfor %}"
    )
    for given in ([{"role": "user", "content": "a\nb"}], chat(text("a"), text("b"))):
        made = chat_text(tokenizer, given, ChatOptions(chat_template=only_parts))
        assert made == "<user>a\nb"
        assert chat_text(tokenizer, given, ChatOptions(chat_template=both)) == "a\nb"
        upper = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
        assert chat_text(tokenizer, given, ChatOptions(chat_template=upper)) == "A\nB"
    folded = ChatOptions(fold_system=True).messages(
        [{"role": "system", "content": [text("s")]}, *chat(text("a"), image("data:image/png,"))]
    )
    assert [part.get("text") for part in folded[0]["content"]] == ["s\n\n", "a", None]


@pytest.fixture
def asked() -> Iterator[Stranger]:
    def say(one: Asked) -> Said | None:
        if one.method != "POST" or "messages" not in one.body:
            return None
        content = one.body["messages"][-1]["content"]
        seen = content if isinstance(content, str) else f"{len(content)} parts"
        message = {"role": "assistant", "content": f"I see {seen}: #### 7"}
        about = {"index": 0, "finish_reason": "stop", "message": message}
        return Said({"model": "m", "choices": [about], "usage": {}})

    with Stranger(say) as server:
        yield server


def chats_to(server: Stranger) -> list[Any]:
    bodies = [one.body for one in server.asked if "messages" in one.body]
    return [content for body in bodies
            if not isinstance(content := body["messages"][-1]["content"], str)]  # fmt: skip


def test_a_server_gets_the_parts_and_the_store_knows_them(asked: Stranger, tmp_path: Path) -> None:
    parts = [text("What is it?"), image(RED)]
    store = open_store(tmp_path / "store.sqlite")
    with remote(asked.url, store, revision="1") as engine:
        (row,) = engine.generate([chat(*parts)], SHORT)
        (again,) = engine.generate([chat(*parts)], SHORT)
        blue = Image.new("RGB", (2, 2), "blue")
        (other,) = engine.generate([chat(parts[0], image(blue))], SHORT)
    assert row.text == "I see 2 parts: #### 7"
    assert (row.from_store, again.from_store, other.from_store) == (False, True, False)
    first, second = chats_to(asked)
    sent: Any = check_prompts([chat(*parts)])[0]
    assert first == sent[0]["content"]
    assert first != second


class Pictures(WordProblems):
    """Its questions have a picture."""

    def prompt(
        self,
        item: Item,
        shots: int = 0,
        style: PromptStyle = "completion",
        wording: str | None = None,
    ) -> Prompt:
        return chat(text(str(item.fields["question"])), image(RED))


def test_a_report_shows_an_image_as_a_word(asked: Stranger, tmp_path: Path) -> None:
    with remote(asked.url) as engine:
        report = evaluate(Pictures(), engine, count=3, style="chat")
        estimate = evaluate(Pictures(), engine, count=3, style="chat", dry_run=True)
    assert report.rows["error"].isna().all()
    assert report.rows["parsed"].all()
    assert [len(content) for content in chats_to(asked)] == [2, 2, 2]
    assert report.trace["prompt"].str.contains(IMAGE, regex=False).all()
    assert not report.trace["prompt"].str.contains("base64").any()
    assert "base64" not in str(report._repr_html_())
    assert 3 * 1_000 < estimate.prompt_tokens < 3 * 1_200
    report.save(tmp_path / "report")
    task = Pictures()
    (item,) = task.items(1)
    case = AgentCase(task, replace(item, fields={}), task.prompt(item), SHORT)
    asks: Any = yes_or_no(case, "7").prompt
    assert [part["type"] for part in asks[0]["content"]] == ["image_url", "text"]


def test_displays_and_estimates() -> None:
    prompt: Any = check_prompts([chat(text("abcd"), image(RED))])[0]
    data = json.dumps(shown(prompt))
    assert IMAGE in data
    assert "base64" not in data
    assert shown("abc") == "abc"
    address = chat(image("https://example.org/a.png"))
    assert shown(address) == address
    assert text_of(prompt[0]["content"]) == f"abcd\n{IMAGE}"
    assert 1_000 < estimated_tokens(prompt) < 1_010
    assert 50_000 < most_tokens(prompt) < 51_000
    assert estimated_tokens([{"role": "user", "content": "abcd"}]) == 2
