"""The OpenAI protocol on the server's side: bodies of answers, whole and in chunks.

In addition to OpenAI's fields, an answer has its number of `forwards` under "denoising", and the
request's fields without effect under "warnings". Log-probabilities are natural, over the full
vocabulary, from the step that committed the token, before any temperature. Tokens have bytes, since
one may be part of a character; an answer's bytes together are its text.
"""

from __future__ import annotations

import codecs
import functools
import json
import re
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.serving.batcher import RowUpdate
    from workbench.serving.protocol import GenerationBody
    from workbench.types import Completion

LEAST = -9999.0  # for minus infinity, which JSON lacks
KINDS = {True: ("chatcmpl", "chat.completion"), False: ("cmpl", "text_completion")}
DONE = "data: [DONE]\n\n"

# Byte-level BPE writes a byte as the character of its number, or as a character above 255 if that
# one is not printable.
SEEN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
UNSEEN = [byte for byte in range(256) if byte not in SEEN]
BYTES = {chr(byte): byte for byte in SEEN} | {chr(256 + i): byte for i, byte in enumerate(UNSEEN)}


@dataclass(frozen=True, slots=True)
class TokenText:
    """A token's printable name, and its bytes in the answer (none for a special token)."""

    text: str
    raw: bytes

    def entry(self, logprob: float) -> dict[str, Any]:
        """The token's entry in a chat's log-probabilities."""
        return {"token": self.text, "logprob": logprob, "bytes": list(self.raw)}


def token_texts(tokenizer: Any) -> Callable[[int], TokenText]:
    """A function from token id to `TokenText`, for a tokenizer."""
    vocabulary, added = tokenizer.get_vocab(), tokenizer.added_tokens_decoder
    byte_level = "Ġ" in vocabulary and "▁" not in vocabulary  # SentencePiece may have both

    @functools.cache
    def token_text(token: int) -> TokenText:
        if token in added:
            text = str(added[token])
            return TokenText(text, b"" if added[token].special else text.encode())
        name = tokenizer.convert_ids_to_tokens(token) or ""  # not all have a name
        raw = token_bytes(name, byte_level=byte_level)
        try:
            return TokenText(raw.decode(), raw)
        except UnicodeDecodeError:
            return TokenText("bytes:" + "".join(f"\\x{byte:02x}" for byte in raw), raw)

    return token_text


def token_bytes(name: str, *, byte_level: bool) -> bytes:
    """The bytes of a token, from its name in the vocabulary of byte-level BPE or SentencePiece."""
    if byte_level and BYTES.keys() >= set(name):
        return bytes(BYTES[character] for character in name)
    if byte := re.fullmatch(r"<0x([0-9A-F]{2})>", name):
        return bytes.fromhex(byte[1])
    return name.replace("▁", " ").encode()


def event(body: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False, allow_nan=False)}\n\n"


class ReplyWriter:
    """Writes the bodies of the answer to one request.

    Args:
        model: the served name that the request uses.
        warnings: the request's settings without effect.
        token_text: from `token_texts`.
    """

    def __init__(
        self,
        request: GenerationBody,
        model: str,
        warnings: Sequence[str],
        token_text: Callable[[int], TokenText],
    ) -> None:
        self._chat, self._warnings, self._token_text = request.chat, warnings, token_text
        self._usage = {"usage": None} if request.include_usage else {}
        prefix, kind = KINDS[self._chat]
        self._head = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, rows: Sequence[RowUpdate]) -> dict[str, Any]:
        """The complete body, once all rows are done."""
        choices = [self._choice(i, row.completion) for i, row in enumerate(rows) if row.completion]
        return {**self._head, "choices": choices, "usage": _usage(rows), **self.extras(rows)}

    def part(self, index: int, text: str, **delta: str) -> dict[str, Any]:
        """A chunk with more text; the first chunk of a chat has its role in `delta`."""
        more = {"delta": {**delta, "content": text}} if self._chat else {"text": text}
        return self._chunk({"index": index, **more, "logprobs": None, "finish_reason": None})

    def last(self, index: int, row: Completion) -> dict[str, Any]:
        """The chunk with an answer's finish reason and all its log-probabilities."""
        choice = self._choice(index, row)
        if self._chat:
            del choice["message"]
            choice["delta"] = {}
        else:
            choice["text"] = ""
        return self._chunk(choice)

    def used(self, rows: Iterable[RowUpdate]) -> dict[str, Any]:
        """The chunk that ends a stream if usage was requested."""
        return self._chunk() | {"usage": _usage(rows)}

    def extras(self, rows: Iterable[RowUpdate]) -> dict[str, Any]:
        """Fields that OpenAI's answers lack; in a stream they are sent with the last choice."""
        extras: dict[str, Any] = {"denoising": {"forwards": sum(row.forwards for row in rows)}}
        return extras | ({"warnings": list(self._warnings)} if self._warnings else {})

    def _chunk(self, *choices: dict[str, Any]) -> dict[str, Any]:
        kind = {"object": "chat.completion.chunk"} if self._chat else {}
        return {**self._head, **kind, "choices": list(choices), **self._usage}

    def _choice(self, index: int, row: Completion) -> dict[str, Any]:
        message = {"message": {"role": "assistant", "content": row.text}}
        return {
            "index": index,
            **(message if self._chat else {"text": row.text}),
            "logprobs": self._logprobs(row),
            "finish_reason": row.finish_reason,
            **({"error": {"message": row.error}} if row.error else {}),
        }

    def _logprobs(self, row: Completion) -> dict[str, Any] | None:
        if row.logprobs is None:
            return None
        tokens = [self._pair(t.token_id, t.logprob) for t in row.logprobs]
        tops = [[self._pair(*pair) for pair in t.top] for t in row.logprobs]
        if self._chat:
            content = [
                {**token.entry(value), "top_logprobs": [one.entry(v) for one, v in top]}
                for (token, value), top in zip(tokens, tops, strict=True)
            ]
            return {"content": content}
        return {
            "tokens": [token.text for token, _ in tokens],
            "token_logprobs": [value for _, value in tokens],
            # With the chosen token, as other servers do; of equal texts, the likeliest.
            "top_logprobs": [
                {token.text: value for token, value in (chosen, *reversed(top))}
                for chosen, top in zip(tokens, tops, strict=True)
            ],
            "text_offset": _offsets(token.raw for token, _ in tokens),
        }

    def _pair(self, token: int | str, logprob: float) -> tuple[TokenText, float]:
        return self._token_text(int(token)), max(logprob, LEAST)


def _offsets(tokens: Iterable[bytes]) -> list[int]:
    """Number of whole characters before each token."""
    decoder, offsets = codecs.getincrementaldecoder("utf-8")("replace"), [0]
    for raw in tokens:
        offsets.append(offsets[-1] + len(decoder.decode(raw)))
    return offsets[:-1]


def _usage(rows: Iterable[RowUpdate]) -> dict[str, int]:
    """Tokens of prompts and answers; padding and the rest of a canvas do not count."""
    done = [row.completion for row in rows if row.completion]
    prompt = sum(row.prompt_tokens for row in done)
    answer = sum(row.completion_tokens for row in done)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
