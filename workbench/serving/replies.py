"""The OpenAI protocol, seen from a server: the bodies of answers, whole and in pieces.

Beyond OpenAI's fields an answer tells the `forwards` it took, under "denoising", and the request's
fields that had no effect, under "warnings". Log-probabilities are natural ones over the full
vocabulary, of the step that committed the token, before any temperature. A token is told by its
bytes, for it may be a part of a character: those of an answer, joined, are its text.
"""

from __future__ import annotations

import codecs
import functools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.serving.batcher import News
    from workbench.serving.protocol import Ask
    from workbench.types import Completion

LEAST = -9999.0  # stands for minus infinity, which JSON has not
DONE = "data: [DONE]\n\n"

# Byte-level BPE writes a byte as the character of its number, or as one after 255 if that cannot
# be seen.
SEEN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
UNSEEN = [byte for byte in range(256) if byte not in SEEN]
BYTES = {chr(byte): byte for byte in SEEN} | {chr(256 + i): byte for i, byte in enumerate(UNSEEN)}


@dataclass(frozen=True, slots=True)
class Piece:
    """A token as it is told, and its bytes in the answer's text; a special one has none there."""

    text: str
    raw: bytes


def pieces(tokenizer: Any) -> Callable[[int], Piece]:
    """What tells the tokens of a tokenizer."""
    vocabulary, added = tokenizer.get_vocab(), tokenizer.added_tokens_decoder
    byte_level = "Ġ" in vocabulary and "▁" not in vocabulary  # SentencePiece may have both

    @functools.cache
    def piece(token: int) -> Piece:
        if token in added:
            text = str(added[token])
            return Piece(text, b"" if added[token].special else text.encode())
        name = tokenizer.convert_ids_to_tokens(token) or ""  # a model may have more than it
        raw = spelt(name, byte_level=byte_level)
        try:
            return Piece(raw.decode(), raw)
        except UnicodeDecodeError:
            return Piece("bytes:" + "".join(f"\\x{byte:02x}" for byte in raw), raw)

    return piece


def spelt(name: str, *, byte_level: bool) -> bytes:
    """The bytes of a token, from its name in the vocabulary of byte-level BPE or SentencePiece."""
    if byte_level and BYTES.keys() >= set(name):
        return bytes(BYTES[character] for character in name)
    if byte := re.fullmatch(r"<0x([0-9A-F]{2})>", name):
        return bytes.fromhex(byte[1])
    return name.replace("▁", " ").encode()


def event(body: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False, allow_nan=False)}\n\n"


class Reply:
    """The answer to a request.

    Args:
        piece: tells a token, as from `pieces`.
    """

    def __init__(self, ask: Ask, piece: Callable[[int], Piece]) -> None:
        self._ask, self._piece = ask, piece
        kind = ("chatcmpl", "chat.completion") if ask.chat else ("cmpl", "text_completion")
        self._head = {
            "id": f"{kind[0]}-{ask.name}",
            "object": kind[1],
            "created": ask.created,
            "model": ask.model,
        }

    def whole(self, rows: Sequence[News]) -> dict[str, Any]:
        """All of it, once all rows are done."""
        choices = [self._choice(i, row.completion) for i, row in enumerate(rows) if row.completion]
        return self._head | {"choices": choices, "usage": usage(rows)} | self.extras(rows)

    def first(self, index: int) -> dict[str, Any]:
        """The chunk that begins a chat's stream."""
        return self.part(index, "", role="assistant")

    def part(self, index: int, text: str, **delta: str) -> dict[str, Any]:
        """A chunk with more text."""
        said = {"delta": {**delta, "content": text}} if self._ask.chat else {"text": text}
        return self._chunk([{"index": index, **said, "logprobs": None, "finish_reason": None}])

    def last(self, index: int, row: Completion) -> dict[str, Any]:
        """The chunk that says why an answer ended; it has all its log-probabilities too."""
        choice = self._choice(index, row)
        if self._ask.chat:
            del choice["message"]
            choice["delta"] = {}
        else:
            choice["text"] = ""
        return self._chunk([choice])

    def used(self, rows: Iterable[News]) -> dict[str, Any]:
        """The chunk that ends a stream whose usage was asked for."""
        return self._chunk([]) | {"usage": usage(rows)}

    def extras(self, rows: Iterable[News]) -> dict[str, Any]:
        """What OpenAI's answers have not; in a stream they go with the last choice."""
        extras: dict[str, Any] = {"denoising": {"forwards": sum(row.forwards for row in rows)}}
        if self._ask.warnings:
            extras["warnings"] = list(self._ask.warnings)
        return extras

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        chunk = self._head | {"choices": choices}
        if self._ask.chat:
            chunk["object"] = "chat.completion.chunk"
        return chunk | ({"usage": None} if self._ask.include_usage else {})

    def _choice(self, index: int, row: Completion) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": row.text}}
        choice = {
            "index": index,
            **(said if self._ask.chat else {"text": row.text}),
            "logprobs": self._logprobs(row),
            "finish_reason": row.finish_reason,
        }
        return choice | ({"error": {"message": row.error}} if row.error else {})

    def _logprobs(self, row: Completion) -> dict[str, Any] | None:
        if row.logprobs is None:
            return None
        tokens = [self._pair(t.token_id, t.logprob) for t in row.logprobs]
        tops = [[self._pair(*pair) for pair in t.top] for t in row.logprobs]
        if self._ask.chat:
            told = [_told(*pair) for pair in tokens]
            for one, top in zip(told, tops, strict=True):
                one["top_logprobs"] = [_told(*pair) for pair in top]
            return {"content": told}
        return {
            "tokens": [piece.text for piece, _ in tokens],
            "token_logprobs": [value for _, value in tokens],
            # With the chosen one, as others do; of equal texts the likeliest.
            "top_logprobs": [
                {piece.text: value for piece, value in (one, *reversed(top))}
                for one, top in zip(tokens, tops, strict=True)
            ],
            "text_offset": _offsets(piece.raw for piece, _ in tokens),
        }

    def _pair(self, token: int | str, logprob: float) -> tuple[Piece, float]:
        return self._piece(int(token)), max(logprob, LEAST)


def _told(piece: Piece, logprob: float) -> dict[str, Any]:
    return {"token": piece.text, "logprob": logprob, "bytes": list(piece.raw)}


def _offsets(tokens: Iterable[bytes]) -> list[int]:
    """The whole characters before each token."""
    decoder, offsets = codecs.getincrementaldecoder("utf-8")("replace"), [0]
    for raw in tokens:
        offsets.append(offsets[-1] + len(decoder.decode(raw)))
    return offsets[:-1]


def usage(rows: Iterable[News]) -> dict[str, int]:
    """Tokens of the prompts and of the answers; neither padding nor the rest of a canvas counts."""
    done = [row.completion for row in rows if row.completion]
    prompt = sum(row.prompt_tokens for row in done)
    made = sum(row.completion_tokens for row in done)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
