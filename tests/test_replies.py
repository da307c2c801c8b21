"""Tokens as answers report them: by their bytes, whatever a character is made of."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tools.training.memoriser import MEMORISER, pairs
from workbench.engines.diffusion import DiffusionEngine, unavailable
from workbench.serving.batcher import RowUpdate
from workbench.serving.diffusion_server import serve_diffusion
from workbench.serving.protocol import ChatBody, CompletionBody
from workbench.serving.replies import ReplyWriter, token_bytes, token_texts
from workbench.types import Completion, TokenLogprob

if reason := unavailable():
    pytest.skip(f"needs PyTorch and transformers: {reason}", allow_module_level=True)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MEMORISER)


def written(tokenizer: Any, text: str, *, chat: bool) -> Any:
    """The log-probabilities of an answer whose every token could have been any other of it."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    top = tuple((token, -1.0 - i) for i, token in enumerate(dict.fromkeys(ids)))
    row = Completion(
        text=text,
        finish_reason="stop",
        logprobs=tuple(TokenLogprob(token, -1.0, top) for token in ids),
    )
    chats = ChatBody.model_validate({"messages": [{"role": "user", "content": text}]})
    request = chats if chat else CompletionBody.model_validate({"prompt": text})
    writer = ReplyWriter(request, "test", [], token_texts(tokenizer))
    answer = writer.whole([RowUpdate(text, 1, row)])
    return answer["choices"][0]["logprobs"]


def test_parts_of_characters_are_reported_by_their_bytes(tokenizer: Any) -> None:
    content = written(tokenizer, "é!", chat=True)["content"]
    assert [one["bytes"] for one in content] == [[0xC3], [0xA9], [0x21]]
    assert [one["token"] for one in content] == [r"bytes:\xc3", r"bytes:\xa9", "!"]
    assert [one["bytes"] for one in content[0]["top_logprobs"]] == [[0xC3], [0xA9], [0x21]]


def test_offsets_count_whole_characters(tokenizer: Any) -> None:
    answer = written(tokenizer, "é!é?", chat=False)
    parts = [r"bytes:\xc3", r"bytes:\xa9"]
    assert answer["tokens"] == [*parts, "!", *parts, "?"]
    assert answer["text_offset"] == [0, 0, 1, 2, 2, 3]
    likeliest = {parts[0]: -1.0, parts[1]: -2.0, "!": -3.0, "?": -4.0}
    assert answer["top_logprobs"] == [likeliest] * 6


def test_bytes_of_any_text_join_to_it(tokenizer: Any) -> None:
    token_text = token_texts(tokenizer)
    for text in [text for pair in pairs() for text in pair]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert b"".join(token_text(token).raw for token in ids).decode() == text


def test_special_tokens_have_no_bytes_in_the_text(tokenizer: Any) -> None:
    token_text = token_texts(tokenizer)
    end = token_text(tokenizer.eos_token_id)
    assert (end.text, end.raw) == (tokenizer.eos_token, b"")
    unknown = token_text(len(tokenizer) + 1)
    assert (unknown.text, unknown.raw) == ("", b"")


@pytest.mark.parametrize(
    ("name", "byte_level", "raw"),
    [
        ("Ġthe", True, b" the"),
        ("ĊĉĀ\u0143", True, b"\n\t\0\xad"),
        ("ÿ", True, b"\xff"),
        ("<｜end｜>", True, "<｜end｜>".encode()),
        ("<0xE4>", True, b"<0xE4>"),
        ("<0xE4>", False, b"\xe4"),
        ("▁the", False, b" the"),
        ("é", False, "é".encode()),
    ],
)
def test_names_in_vocabularies(name: str, byte_level: bool, raw: bytes) -> None:
    assert token_bytes(name, byte_level=byte_level) == raw


def test_bytes_of_a_served_chat_join_to_its_content() -> None:
    chat = {"messages": [{"role": "user", "content": "Hello!"}], "logprobs": True}
    with (
        DiffusionEngine(str(MEMORISER), None, "test", {"threshold": 0.9}) as engine,
        serve_diffusion(engine, max_wait_time=0) as server,
    ):
        url = f"{server.url}/chat/completions"
        answer = httpx.post(url, json={**chat, "max_tokens": 64}, timeout=60).json()
    choice = answer["choices"][0]
    joined = b"".join(bytes(one["bytes"]) for one in choice["logprobs"]["content"])
    assert "👋" in choice["message"]["content"]
    assert joined.decode(errors="replace") == choice["message"]["content"]
