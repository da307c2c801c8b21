"""The diffusion server's application and its paths; imported when a server starts.

The event loop only waits for updates of rows. Bodies are read and tokenised in a separate thread,
and the model's thread sends its results.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from workbench.errors import InputError
from workbench.serving.batcher import Batcher, QueuedRow, RowUpdate
from workbench.serving.protocol import (
    ApiError,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    GenerationBody,
    TextPrompt,
    TokenizeBody,
    parse,
)
from workbench.serving.replies import DONE, ReplyWriter, event, token_texts

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from workbench.engines.diffusion import DiffusionEngine, Row

T = TypeVar("T")
Updates = asyncio.Queue[tuple[int, RowUpdate]]  # with the row's index
LOOK = 0.2  # seconds between checks whether the client is still connected
LARGEST = 2**22  # maximum bytes of a body
STREAM = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # proxies forward it at once


class DiffusionApp:
    """The ASGI application; `inside` is its number of open requests.

    Args:
        names: the model's served names, the plain one first.
        aliases: additional names for requests, which are not listed.
    """

    def __init__(
        self,
        engine: DiffusionEngine,
        batcher: Batcher,
        names: Sequence[str],
        aliases: Sequence[str],
    ) -> None:
        self._engine, self._batcher, self.names = engine, batcher, names
        self.stats = batcher.stats
        self._known_names = [*names, *aliases]
        self._context = engine.info.context_length
        self._longest = max(map(len, engine.tokenizer.get_vocab()))  # maximum characters of a token
        # One thread: a tokenizer is not thread-safe.
        self._tokenizing = ThreadPoolExecutor(1, "workbench-tokenizing")
        self._token_text = token_texts(engine.tokenizer)
        self.inside, self.draining = 0, False
        self._routes = self._fastapi()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; cancels its rows if its client has disconnected."""
        rows: list[QueuedRow] = []
        scope.setdefault("state", {})["rows"] = rows
        self.inside += 1  # before `draining` is read, which another thread sets
        try:
            if self.draining and scope["method"] == "POST":
                ended = ApiError(503, "the server is stopping and accepts no more requests")
                response = await self._error(Request(scope), ended)
                await response(scope, receive, send)
            else:
                await self._routes(scope, receive, send)
        finally:
            self._batcher.cancel(rows)
            self.inside -= 1

    def drain(self) -> None:
        """Accept no more generation requests."""
        self._batcher.hurry()
        self.draining = True

    def close(self) -> None:
        """End the tokenizer's thread."""
        self._tokenizing.shutdown(wait=False, cancel_futures=True)

    def _fastapi(self) -> FastAPI:
        """The application with its paths; `/docs` describes them."""
        app = FastAPI(
            title="workbench: masked diffusion", version="1", redoc_url=None, redirect_slashes=False
        )
        for path, kind, work in (
            ("/v1/chat/completions", ChatBody, self._generate),
            ("/v1/completions", CompletionBody, self._generate),
            ("/tokenize", TokenizeBody, self._tokenize),
            ("/detokenize", DetokenizeBody, self._detokenize),
        ):
            schema = {"application/json": {"schema": kind.model_json_schema()}}
            app.add_api_route(
                path,
                _endpoint(work, kind),
                name=path,
                methods=["POST"],
                response_model=None,
                openapi_extra={"requestBody": {"required": True, "content": schema}},
            )
        app.add_api_route("/v1/models", self._models)
        app.add_api_route("/batch/stats", self._statistics)
        app.add_api_route("/health", self._health, response_model=None)
        app.add_api_route(
            "/", self._health, methods=["GET", "PUT"], response_model=None, include_in_schema=False
        )
        for error in (ApiError, InputError, HTTPException, Exception):
            app.add_exception_handler(error, self._error)
        app.add_exception_handler(ClientDisconnect, _gone)
        return app

    async def _models(self) -> dict[str, Any]:
        card = {"object": "model", "created": 0, "owned_by": "workbench", "root": self.names[0]}
        card |= {"parent": None, "max_model_len": self._context}
        return {"object": "list", "data": [{"id": name, **card} for name in self.names]}

    async def _health(self) -> Response:
        status = "broken" if self._batcher.broken else "draining" if self.draining else "ok"
        body = {
            "status": status,
            "model": self.names[0],
            "live": len(self._batcher.live),
            "waiting": len(self._batcher.waiting),
        }
        return JSONResponse(body, 200 if status == "ok" else 503)

    async def _statistics(self) -> dict[str, Any]:
        now = {"queue_length": len(self._batcher.waiting), "slots": self._batcher.slots}
        return self.stats.view() | now

    async def _generate(self, request: Request, kind: type[GenerationBody]) -> Response:
        self.stats.add("requests")
        body, writer, rows = await self._with_tokenizer(self._read, kind, await _body(request))
        updates: Updates = asyncio.Queue()
        post, stream = partial(_post, asyncio.get_running_loop(), updates), bool(body.stream)
        queued = [QueuedRow(row, partial(post, index), stream) for index, row in enumerate(rows)]
        self._batcher.submit(queued)
        request.state.rows.extend(queued)
        if stream:
            events = self._events(body, writer, updates, len(rows))
            return StreamingResponse(events, media_type="text/event-stream", headers=STREAM)
        done = await _all_rows(request, updates, len(rows))
        errors = [row.completion.error for row in done if row.completion and row.completion.error]
        if len(errors) == len(done):
            raise ApiError(500, errors[0])
        for _ in errors:
            self.stats.add_error("row_error")
        return JSONResponse(await _written(body, writer.whole, done))

    async def _events(
        self, request: GenerationBody, writer: ReplyWriter, updates: Updates, count: int
    ) -> AsyncIterator[str]:
        """The answer as server-sent events, one or more per finished block."""
        if request.chat:
            yield event(writer.part(0, "", role="assistant"))
        done: list[RowUpdate] = []
        sent = [""] * count
        while len(done) < count:
            index, update = await updates.get()
            row = update.completion
            if row and row.error:
                self.stats.add_error("row_error")
                if count == 1:
                    yield event(ApiError(500, row.error).body)
                    return
            if more := update.text[len(sent[index]) :]:
                sent[index] = update.text
                yield event(writer.part(index, more))
            if row:
                done.append(update)
                chunk = await _written(request, writer.last, index, row)
                if len(done) == count:
                    chunk |= writer.extras(done)
                yield event(chunk)
        if request.include_usage:
            yield event(writer.used(done))
        yield DONE

    async def _with_tokenizer(self, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, work, *args)

    def _read(
        self, kind: type[GenerationBody], raw: bytes
    ) -> tuple[GenerationBody, ReplyWriter, list[Row]]:
        """(request, writer of its answer, rows)."""
        body = parse(kind, raw)
        name, prompts = body.served_name(self._known_names), body.prompts()
        warnings, sampling = body.warnings(), body.sampling()
        denoising = body.denoising(self._engine.denoising)
        if len(prompts) > self._batcher.queue_size:
            raise ApiError(
                400,
                f"prompt: {len(prompts)} prompts are more than the {self._batcher.queue_size} "
                "that fit into the queue; send several requests",
                param="prompt",
            )
        rows = []
        for prompt, seed in zip(prompts, body.seeds(), strict=True):
            if (least := self._least_tokens(prompt)) > self._context:  # before slow work on it
                size = f"{least} input tokens or more"
                raise body.too_long(size, body.most or 1, self._context)
            ids = self._tokens(prompt)
            fitting = body.fit(sampling, len(ids), self._context)
            rows.append(self._engine.row(ids, fitting, denoising, seed))
        return body, ReplyWriter(body, name, warnings, self._token_text), rows

    def _least_tokens(self, prompt: TextPrompt) -> int:
        if not isinstance(prompt, str) and isinstance(prompt[0], int):
            return len(prompt)
        texts = [prompt] if isinstance(prompt, str) else [m["content"] for m in prompt]
        return sum(map(len, texts)) // self._longest

    def _tokens(self, prompt: TextPrompt) -> list[int]:
        if isinstance(prompt, str):
            return self._engine.encode(prompt)
        if isinstance(prompt[0], int):
            return self._known(prompt, "prompt")
        return self._engine.encode_chat(prompt)

    def _known(self, tokens: list[int], param: str) -> list[int]:
        """Check tokens against the tokenizer; invalid ones would crash the model for all rows."""
        most = len(self._engine.tokenizer) - 1
        for token in tokens:
            if not 0 <= token <= most:
                raise ApiError(400, f"{param}: token {token} is not from 0 to {most}", param=param)
        return tokens

    async def _tokenize(self, request: Request, kind: type[TokenizeBody]) -> Response:
        body = parse(kind, await _body(request))
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "send either prompt or messages", param="prompt")
        prompt = [message.plain() for message in body.messages] if body.messages else body.prompt
        ids = await self._with_tokenizer(self._tokens, prompt)
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": self._context})

    async def _detokenize(self, request: Request, kind: type[DetokenizeBody]) -> Response:
        tokens = self._known(parse(kind, await _body(request)).tokens, "tokens")
        text = await self._with_tokenizer(self._engine.tokenizer.decode, tokens)
        return JSONResponse({"prompt": text})

    async def _error(self, request: Request, error: Exception) -> Response:
        """Any failure, as an error in OpenAI's format."""
        if isinstance(error, ApiError):
            refusal = error
        elif isinstance(error, InputError):
            refusal = ApiError.of(error)
        elif isinstance(error, HTTPException):
            message = f"{error.detail}: {request.method} {request.url.path}"
            refusal = ApiError(error.status_code, message, headers=error.headers)
        else:
            refusal = ApiError(500, f"{type(error).__name__}: {error}")
        self.stats.add_error(refusal.kind)
        return JSONResponse(refusal.body, refusal.status, refusal.headers)


def _endpoint(
    work: Callable[..., Coroutine[Any, Any, Response]], kind: type
) -> Callable[..., Coroutine[Any, Any, Response]]:
    async def endpoint(request: Request) -> Response:
        return await work(request, kind)

    return endpoint


async def _body(request: Request) -> bytes:
    """A request's body; refuses one so large that it would block other requests."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LARGEST:
            raise ApiError(413, f"the body has more than {LARGEST} bytes; send several requests")
    return bytes(body)


async def _gone(*_: object) -> Response:
    """The response for a client that has disconnected."""
    return Response(status_code=499)


def _post(loop: asyncio.AbstractEventLoop, to: Updates, index: int, update: RowUpdate) -> None:
    with suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(to.put_nowait, (index, update))


async def _all_rows(request: Request, updates: Updates, count: int) -> list[RowUpdate]:
    """The last update of each row, in order; stops if the client disconnects."""
    done: dict[int, RowUpdate] = {}
    while len(done) < count:
        try:
            index, update = await asyncio.wait_for(updates.get(), LOOK)
            done[index] = update
        except TimeoutError:
            if await request.is_disconnected():
                raise ClientDisconnect from None
    return [done[index] for index in range(count)]


async def _written(
    request: GenerationBody, write: Callable[..., dict[str, Any]], *args: Any
) -> dict[str, Any]:
    """A body; written outside the event loop if it has many tokens' texts."""
    slow = request.likeliest() is not None
    return await asyncio.to_thread(write, *args) if slow else write(*args)
