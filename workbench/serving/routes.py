"""The paths of the diffusion server; imported where one starts.

The event loop waits for nothing but news: bodies are read and tokenised in a thread of their own,
and the model's thread sends what it has.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from workbench.errors import InputError
from workbench.serving.batcher import Batcher, ClosedError, FullError, News, Ticket
from workbench.serving.protocol import (
    Ask,
    Chat,
    Detokenize,
    Refusal,
    Text,
    Tokenize,
    messages,
    parse,
)
from workbench.serving.replies import DONE, Reply, event, pieces

if TYPE_CHECKING:
    from workbench.engines.diffusion import DiffusionEngine, Row
    from workbench.serving.counts import Tally

T = TypeVar("T")
LARGEST = 2**22  # bytes of a body
STREAM = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # proxies pass it on at once


@dataclass(frozen=True, slots=True)
class _Work:
    """A request whose rows are on their way; news come with the index of the row."""

    ask: Ask
    reply: Reply
    count: int
    news: asyncio.Queue[tuple[int, News]]


class Routes:
    """What each path does.

    Args:
        names: of the model, the first its own.
        aliases: names that are understood too, and not listed.
    """

    def __init__(
        self,
        engine: DiffusionEngine,
        batcher: Batcher,
        tally: Tally,
        names: Sequence[str],
        aliases: Sequence[str],
    ) -> None:
        self._engine, self._batcher, self._tally, self._names = engine, batcher, tally, names
        self._known_names = [*names, *aliases]
        self._context = engine.info.context_length
        self._longest = max(map(len, engine.tokenizer.get_vocab()))  # characters of a token
        # One thread: a tokenizer is not safe to use from several.
        self._desk = ThreadPoolExecutor(1, "workbench-desk")
        self._piece = pieces(engine.tokenizer)
        self.draining = False

    def app(self) -> FastAPI:
        """The application, with its description at `/docs`."""
        app = FastAPI(
            title="workbench: masked diffusion",
            version="1",
            redoc_url=None,
            redirect_slashes=False,
        )
        for path, route, body in (
            ("/v1/chat/completions", self.chat, Chat),
            ("/v1/completions", self.completions, Text),
            ("/tokenize", self.tokenize, Tokenize),
            ("/detokenize", self.detokenize, Detokenize),
        ):
            schema = {"application/json": {"schema": body.model_json_schema()}}
            extra = {"requestBody": {"required": True, "content": schema}}
            app.add_api_route(
                path, route, methods=["POST"], response_model=None, openapi_extra=extra
            )
        app.add_api_route("/v1/models", self.models)
        app.add_api_route("/batch/stats", self.stats)
        app.add_api_route("/health", self.health, response_model=None)
        probe = ["GET", "PUT"]
        app.add_api_route(
            "/", self.health, methods=probe, response_model=None, include_in_schema=False
        )
        for kind in (Refusal, InputError, FullError, ClosedError, HTTPException, Exception):
            app.add_exception_handler(kind, self.refuse)
        app.add_exception_handler(ClientDisconnect, _nobody)
        return app

    async def chat(self, request: Request) -> Response:
        """Answer a chat."""
        return await self._generate(request, Chat)

    async def completions(self, request: Request) -> Response:
        """Continue one text or several."""
        return await self._generate(request, Text)

    async def tokenize(self, request: Request) -> dict[str, Any]:
        """The tokens of a text, or of a chat up to where its answer begins."""
        return await self._at_desk(self._tokenize, await _body(request))

    async def detokenize(self, request: Request) -> dict[str, Any]:
        """The text of tokens."""
        return await self._at_desk(self._detokenize, await _body(request))

    async def models(self) -> dict[str, Any]:
        """The model, under all its names."""
        card = {"object": "model", "created": 0, "owned_by": "workbench", "root": self._names[0]}
        card |= {"parent": None, "max_model_len": self._context}
        return {"object": "list", "data": [{"id": name, **card} for name in self._names]}

    async def health(self) -> Response:
        """Whether requests are taken."""
        status = "broken" if self._batcher.broken else "draining" if self.draining else "ok"
        told = {
            "status": status,
            "model": self._names[0],
            "live": self._batcher.live,
            "waiting": self._batcher.waiting,
        }
        return JSONResponse(told, 200 if status == "ok" else 503)

    async def stats(self) -> dict[str, Any]:
        """What has been done since the start."""
        now = {"queue_length": self._batcher.waiting, "slots": self._batcher.slots}
        return self._tally.view() | now

    async def _generate(self, request: Request, kind: type[Chat | Text]) -> Response:
        self._tally.add("requests")
        ask, rows = await self._at_desk(self._read, kind, await _body(request))
        work = _Work(ask, Reply(ask, self._piece), len(rows), asyncio.Queue())
        post = functools.partial(_post, asyncio.get_running_loop(), work.news)
        tickets = [
            Ticket(row, functools.partial(post, index), ask.stream)
            for index, row in enumerate(rows)
        ]
        self._batcher.submit(tickets)
        request.state.tickets.extend(tickets)
        if ask.stream:
            return StreamingResponse(
                self._events(work), media_type="text/event-stream", headers=STREAM
            )
        done = await _unless_gone(request, _all(work))
        errors = [row.completion.error for row in done if row.completion and row.completion.error]
        if len(errors) == len(done):
            raise Refusal(500, str(errors[0]))
        for _ in errors:
            self._tally.add_error("row_error")
        return JSONResponse(await _made(ask, work.reply.whole, done))

    async def _events(self, work: _Work) -> AsyncIterator[str]:
        """The answer as its blocks are finished."""
        ask, reply, told = work.ask, work.reply, [""] * work.count
        if ask.chat:
            yield event(reply.first(0))
        done: dict[int, News] = {}
        while len(done) < work.count:
            index, news = await work.news.get()
            row = news.completion
            if row and row.error:
                self._tally.add_error("row_error")
                if work.count == 1:
                    yield event(Refusal(500, row.error).body())
                    return
            if more := news.text[len(told[index]) :]:
                told[index] = news.text
                yield event(reply.part(index, more))
            if row:
                done[index] = news
                chunk = await _made(ask, reply.last, index, row)
                if len(done) == work.count:
                    chunk |= reply.extras(done.values())
                yield event(chunk)
        if ask.include_usage:
            yield event(reply.used(done.values()))
        yield DONE

    def close(self) -> None:
        """End the desk's thread."""
        self._desk.shutdown(wait=False, cancel_futures=True)

    async def _at_desk(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._desk, work, *args)

    def _read(self, kind: type[Chat | Text], raw: bytes) -> tuple[Ask, list[Row]]:
        ask = Ask.of(parse(kind, raw), self._known_names, self._engine.denoising)
        if len(ask.prompts) > self._batcher.queue_size:
            raise Refusal(
                400,
                f"prompt: {len(ask.prompts)} of them are more than the {self._batcher.queue_size} "
                "that may wait; send them in several requests",
                param="prompt",
            )
        rows = []
        for prompt, seed in zip(ask.prompts, ask.seeds, strict=True):
            if (least := self._least(prompt)) > self._context:  # before long work on it
                raise ask.too_long(least, ask.max_tokens or 1, self._context, or_more=True)
            ids = self._tokens(prompt)
            sampling = ask.fit(len(ids), self._context)
            rows.append(self._engine.row(ids, sampling, ask.denoising, seed))
        return ask, rows

    def _least(self, prompt: Any) -> int:
        """Tokens that a prompt has at least."""
        if isinstance(prompt, str):
            return len(prompt) // self._longest
        if isinstance(prompt[0], int):
            return len(prompt)
        return sum(len(message["content"]) for message in prompt) // self._longest

    def _tokens(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            return self._engine.encode(prompt)
        if isinstance(prompt[0], int):
            return self._known(prompt, "prompt")
        return self._engine.encode_chat(prompt)

    def _known(self, tokens: list[int], param: str) -> list[int]:
        """Tokens that the tokenizer has; others would break the model's run for all."""
        most = len(self._engine.tokenizer) - 1
        for token in tokens:
            if not 0 <= token <= most:
                raise Refusal(400, f"{param}: token {token} is not from 0 to {most}", param=param)
        return tokens

    def _tokenize(self, raw: bytes) -> dict[str, Any]:
        body = parse(Tokenize, raw)
        if (body.prompt is None) == (body.messages is None):
            raise Refusal(400, "give either prompt or messages", param="prompt")
        ids = self._tokens(messages(body.messages) if body.messages else body.prompt)
        return {"tokens": ids, "count": len(ids), "max_model_len": self._context}

    def _detokenize(self, raw: bytes) -> dict[str, Any]:
        tokens = self._known(parse(Detokenize, raw).tokens, "tokens")
        return {"prompt": self._engine.tokenizer.decode(tokens)}

    async def refuse(self, request: Request, error: Exception) -> Response:
        """Any failure as an error of OpenAI's form."""
        refusal = _refusal(request, error)
        self._tally.add_error(refusal.kind)
        return JSONResponse(refusal.body(), refusal.status, refusal.headers)


def _refusal(request: Request, error: Exception) -> Refusal:
    if isinstance(error, Refusal):
        return error
    if isinstance(error, InputError):
        return Refusal.of(error)
    if isinstance(error, FullError):
        return Refusal(429, str(error), code="queue_full", retry_after=error.retry_after)
    if isinstance(error, ClosedError):
        return Refusal(503, str(error))
    if isinstance(error, HTTPException):
        told = f"{error.detail}: {request.method} {request.url.path}"
        return Refusal(error.status_code, told, headers=error.headers)
    return Refusal(500, f"{type(error).__name__}: {error}")


async def _body(request: Request) -> bytes:
    """A request's body, unless it is so large that reading it would hold up everybody."""
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > LARGEST:
            raise Refusal(413, f"the body has more than {LARGEST} bytes: send several requests")
    return b"".join(parts)


async def _nobody(*_: object) -> Response:
    """For a client that has left."""
    return Response(status_code=499)


def _post(
    loop: asyncio.AbstractEventLoop, to: asyncio.Queue[tuple[int, News]], index: int, news: News
) -> None:
    with suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(to.put_nowait, (index, news))


async def _all(work: _Work) -> list[News]:
    """The last news of each row, in order."""
    done = dict([await work.news.get() for _ in range(work.count)])
    return [done[index] for index in range(work.count)]


async def _unless_gone(request: Request, rows: Any) -> list[News]:
    """What is awaited, unless the client leaves before."""

    async def leaving() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    waiting = asyncio.ensure_future(rows)
    left = asyncio.ensure_future(leaving())
    try:
        await asyncio.wait({waiting, left}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            raise ClientDisconnect
        return list(waiting.result())
    finally:
        waiting.cancel()
        left.cancel()


async def _made(ask: Ask, make: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    """A body; one with the texts of many tokens is not made in the event loop."""
    if ask.sampling.logprobs is None:
        return make(*args)
    return await asyncio.to_thread(make, *args)
