"""`/v1/chat/completions` and `/v1/completions`, streamed as server-sent events or whole."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from typing import Any

from litestar import Controller, Response, post
from litestar.params import JSONBody

from backends.types import Chat, Render
from daemon.api.conversation import options_for
from daemon.api.exchange import Exchange, warning_headers
from daemon.api.framing import EventAnswer, error_handlers
from daemon.api.images import image_count
from daemon.api.lookup import require_capability, require_completion
from daemon.api.openai.admission import check_wish, known
from daemon.api.openai.answers import ChatWriter, TextWriter
from daemon.api.openai.errors import EMPTY_BODY, EVENTS
from daemon.api.openai.reading import (
    chat_options,
    check_completion,
    completion_chat,
    completion_options,
    ignored_names,
    read_chat,
    read_prompt,
)
from daemon.api.openai.wire import Answer, ChatRequest, CompletionFields, CompletionRequest
from daemon.api.request import ApiRequest, client_of
from daemon.api.services import Rooms


async def rendered(
    exchange: Exchange, chat: Chat, writer: ChatWriter | TextWriter
) -> AsyncGenerator[Answer, None]:
    async with await exchange.acquire(wants_row=False) as lease:
        prompt = await lease.render(Render(request_id=chat.request_id, chat=chat))
    yield writer.rendered(prompt, image_count(chat, prompt))


async def _loaded(exchange: Exchange, writer: TextWriter) -> AsyncGenerator[Answer, None]:
    async with await exchange.acquire(wants_row=False):
        pass
    yield writer.loaded()


def _response(
    data: CompletionFields,
    exchange: Exchange,
    chat: Chat,
    writer: ChatWriter | TextWriter,
    ignored: Iterable[str],
) -> Response[bytes]:
    if data.debug_render_only:
        return EventAnswer(rendered(exchange, chat, writer), stream=False, form=EVENTS)
    deltas = exchange.deltas(chat)
    return EventAnswer(
        writer.chunks(deltas) if data.stream else writer.whole(deltas),
        stream=data.stream,
        headers=warning_headers(ignored),
        form=EVENTS,
    )


class CompletionController(Controller):
    tags = ["openai"]
    exception_handlers: Any = error_handlers(EVENTS)
    opt: Any = EMPTY_BODY

    @post("/v1/chat/completions", status_code=200)
    async def chat(
        self, data: JSONBody[ChatRequest], request: ApiRequest, services: Rooms
    ) -> Response[bytes]:
        wish = await request.apart(read_chat, data)
        sampling = chat_options(data)
        model = await known(services, data.model)
        check_wish(wish, model)
        options = options_for(sampling, model, services.config)
        exchange = Exchange(services, client_of(request), model, options)
        writer = ChatWriter(
            data.model,
            parallel=wish.tools.parallel,
            include_usage=data.stream_options.include_usage,
        )
        strict = ["tools[].function.strict"] if wish.tools.unheld else []
        chat = wish.chat(model, options)
        return _response(data, exchange, chat, writer, [*ignored_names(data), *strict])

    @post("/v1/completions", status_code=200)
    async def complete(
        self, data: JSONBody[CompletionRequest], request: ApiRequest, services: Rooms
    ) -> Response[bytes]:
        check_completion(data)
        prompt = read_prompt(data.prompt)
        sampling = completion_options(data)
        model = await known(services, data.model)
        require_completion(model, "generate")
        if data.suffix:
            require_capability(model, "insert")
        options = options_for(sampling, model, services.config)
        exchange = Exchange(services, client_of(request), model, options)
        writer = TextWriter(data.model, include_usage=data.stream_options.include_usage)
        if not prompt:
            return EventAnswer(_loaded(exchange, writer), stream=False, form=EVENTS)
        chat = completion_chat(data, prompt, model, options)
        return _response(data, exchange, chat, writer, ignored_names(data))
