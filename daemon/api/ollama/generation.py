"""`/api/generate` and `/api/chat`: load, unload, render or answer, streamed or in one piece.

Everything that can be refused without the weights is refused before the model is asked for. From
then on one generator does the work, and closing it (a client that left) takes all of it back.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Generic, TypeVar

from litestar import Controller, Response, post
from litestar.params import JSONBody

from backends.types import Chat, Render
from daemon.api.conversation import options_for
from daemon.api.exchange import Exchange, warning_headers
from daemon.api.framing import EventAnswer, json_response
from daemon.api.images import image_count
from daemon.api.lookup import find, know
from daemon.api.ollama.answers import ChatWriter, GenerateWriter, Timing, Writer, written
from daemon.api.ollama.reading import (
    chat_to_chat,
    check_chat,
    check_generate,
    check_template,
    generate_to_chat,
    read_wishes,
)
from daemon.api.ollama.wire import Answer, ChatRequest, GenerateRequest, ModelRequest
from daemon.api.request import ApiRequest, client_of, require_manager
from daemon.api.services import Rooms, Services
from daemon.errors import Invalid, NotFound
from daemon.models.resolved import ResolvedModel

_A = TypeVar("_A", bound=Answer)


@dataclass(frozen=True)
class Asked(Generic[_A]):
    """One request that passed its checks, and who writes its answer."""

    exchange: Exchange
    writer: Writer[_A]

    async def loaded(self) -> AsyncGenerator[_A, None]:
        async with await self.exchange.acquire(wants_row=False):
            pass
        yield self.writer.bare("load")

    async def rendered(self, chat: Chat) -> AsyncGenerator[_A, None]:
        async with await self.exchange.acquire(wants_row=False) as lease:
            prompt = await lease.render(Render(request_id=chat.request_id, chat=chat))
        yield self.writer.rendered(prompt, image_count(chat, prompt))

    async def answered(self, chat: Chat) -> AsyncGenerator[_A, None]:
        async with aclosing(written(self.exchange.deltas(chat), self.writer)) as answers:
            async for answer in answers:
                yield answer

    def response(self, data: ModelRequest, chat: Chat | None) -> EventAnswer[_A]:
        """`chat` None: the model is only to be loaded."""
        headers = warning_headers(self.exchange.options.ignored)
        if chat is None:
            return EventAnswer(self.loaded(), stream=False, headers=headers)
        if data.debug_render_only:
            return EventAnswer(self.rendered(chat), stream=False, headers=headers)
        return EventAnswer(
            self.answered(chat),
            stream=data.stream is not False,
            merge=self.writer.merged,
            headers=headers,
        )


def _unload(
    request: ApiRequest, services: Services, stored: ResolvedModel, writer: Writer[_A]
) -> Response[bytes]:
    """Answered at once; the model goes when its running requests have ended."""
    require_manager(request)
    services.residency.unload(stored.name.short)
    return json_response(writer.bare("unload"))


class GenerationController(Controller):
    tags = ["ollama"]

    @post("/api/generate", status_code=200)
    async def generate(
        self, data: JSONBody[GenerateRequest], request: ApiRequest, services: Rooms
    ) -> Response[bytes]:
        timing = Timing()
        wishes = await request.apart(read_wishes, data)
        if not data.model.strip():
            raise NotFound("model '' not found")
        stored = await find(services, data.model)
        writer = GenerateWriter(data.model, timing)
        if not data.prompt and wishes.is_unload:
            return _unload(request, services, stored, writer)
        model = await know(services, data.model, stored)
        check_generate(data, wishes, model)
        options = options_for(data.options, model, services.config)
        await check_template(data.template)
        chat = generate_to_chat(data, wishes, options, model) if data.prompt else None
        exchange = Exchange(
            services, client_of(request), model, options, wishes.keep_alive, timing.ready
        )
        return Asked(exchange, writer).response(data, chat)

    @post("/api/chat", status_code=200)
    async def chat(
        self, data: JSONBody[ChatRequest], request: ApiRequest, services: Rooms
    ) -> Response[bytes]:
        timing = Timing()
        wishes = await request.apart(read_wishes, data)
        if not data.model.strip():
            raise Invalid("model is required")
        stored = await find(services, data.model)
        writer = ChatWriter(data.model, timing)
        if not data.messages and wishes.is_unload:
            return _unload(request, services, stored, writer)
        model = await know(services, data.model, stored)
        check_chat(data, wishes, model)
        options = options_for(data.options, model, services.config)
        chat = chat_to_chat(data, wishes, options, model) if data.messages else None
        exchange = Exchange(
            services, client_of(request), model, options, wishes.keep_alive, timing.ready
        )
        return Asked(exchange, writer).response(data, chat)
