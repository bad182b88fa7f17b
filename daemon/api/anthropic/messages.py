"""`/v1/messages` and `/v1/messages/count_tokens`.

Everything that can be refused without the weights is refused before the model is asked for. From
then on one generator does the work, and closing it (a client that left) takes all of it back.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from litestar import Controller, Response, post
from litestar.params import JSONBody

from backends.types import Chat, CountTokens
from daemon.api.anthropic.answers import MessageWriter, whole_message, written
from daemon.api.anthropic.errors import ERROR_HANDLERS, event_form, new_id, request_headers
from daemon.api.anthropic.reading import (
    Wishes,
    check_model,
    check_required,
    ignored_by,
    read_wishes,
    sent_options,
    to_chat,
)
from daemon.api.anthropic.wire import CountRequest, MessagesRequest, StreamEvent, TokenCount
from daemon.api.conversation import options_for
from daemon.api.exchange import Exchange, warning_headers
from daemon.api.framing import EventAnswer
from daemon.api.lookup import find, know
from daemon.api.request import ApiRequest, client_of
from daemon.api.services import Rooms, Services


@dataclass(frozen=True)
class Asked:
    """One request that passed its checks."""

    exchange: Exchange
    chat: Chat
    wishes: Wishes
    request_id: str

    async def answered(self, writer: MessageWriter) -> AsyncGenerator[StreamEvent, None]:
        async with aclosing(written(self.exchange.events(self.chat), writer)) as events:
            async for event in events:
                yield event

    async def counted(self) -> AsyncGenerator[TokenCount, None]:
        count = CountTokens(request_id=self.chat.request_id, chat=self.chat)
        async with await self.exchange.acquire(wants_row=False) as lease:
            yield TokenCount(input_tokens=await lease.count(count))

    @property
    def headers(self) -> dict[str, str]:
        ignored = ignored_by(self.wishes, self.exchange.model)
        return request_headers(self.request_id) | warning_headers(ignored)


async def _asked(data: CountRequest, request: ApiRequest, services: Services) -> Asked:
    """Raises Invalid, NotFound and others, before anything is loaded."""
    check_required(data)
    wishes = await request.apart(read_wishes, data)
    model = await know(services, data.model, await find(services, data.model))
    check_model(wishes, model)
    options = options_for(sent_options(data), model, services.config)
    exchange = Exchange(services, client_of(request), model, options)
    return Asked(exchange, to_chat(wishes, options, model), wishes, new_id("req"))


class MessagesController(Controller):
    tags = ["anthropic"]
    path = "/v1/messages"
    exception_handlers = ERROR_HANDLERS
    opt = {"empty_body": "EOF"}

    @post("/", status_code=200)
    async def create(
        self, data: JSONBody[MessagesRequest], request: ApiRequest, services: Rooms
    ) -> Response[bytes]:
        """One answer, as a message or as the events that it is made of."""
        asked = await _asked(data, request, services)
        writer = MessageWriter(
            data.model,
            stop_sequences=data.stop_sequences,
            hides_thinking=asked.wishes.hides_thinking,
            calls_once=asked.wishes.calls_once,
        )
        return EventAnswer(
            asked.answered(writer),
            stream=data.stream,
            merge=whole_message,
            headers=asked.headers | ({"Cache-Control": "no-cache"} if data.stream else {}),
            form=event_form(asked.request_id),
        )

    @post("/count_tokens", status_code=200)
    async def count_tokens(
        self, data: JSONBody[CountRequest], request: ApiRequest, services: Rooms
    ) -> Response[bytes]:
        """Ids of the rendered prompt; loads the model, generates nothing."""
        asked = await _asked(data, request, services)
        form = event_form(asked.request_id)
        return EventAnswer(asked.counted(), stream=False, headers=asked.headers, form=form)
