"""`/v1/responses`, streamed as typed events or whole. Nothing is stored: each request brings all."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from litestar import Controller, Response, post
from litestar.params import JSONBody

from daemon.api.conversation import options_for
from daemon.api.exchange import Exchange, warning_headers
from daemon.api.framing import EventAnswer, error_handlers, event_frame
from daemon.api.openai.admission import check_wish, known
from daemon.api.openai.errors import EMPTY_BODY, EVENTS
from daemon.api.openai.responses.answers import ResponseWriter, new_id
from daemon.api.openai.responses.objects import Event, ResponseObject
from daemon.api.openai.responses.reading import ignored_names, read_request
from daemon.api.openai.responses.wire import ResponsesRequest
from daemon.api.options import ResolvedOptions
from daemon.api.request import ApiRequest, client_of
from daemon.api.services import Rooms


def _frame(event: Event) -> bytes:
    return event_frame(event, event.type)


# Such a stream ends with its last event, and errors are events of the response itself.
TYPED_EVENTS = replace(EVENTS, frame=_frame, end=b"")


def _options(data: ResponsesRequest) -> dict[str, Any]:
    """The temperature has this dialect's own default, not the model's."""
    return {
        "num_predict": data.max_output_tokens,
        "temperature": 1.0 if data.temperature is None else data.temperature,
        "top_p": data.top_p,
    }


def _blank(data: ResponsesRequest, options: ResolvedOptions) -> ResponseObject:
    """The response before anything was said."""
    return ResponseObject(
        id=new_id("resp"),
        created_at=int(time.time()),
        model=data.model,
        instructions=data.instructions,
        tools=data.tools,
        tool_choice="auto" if data.tool_choice is None else data.tool_choice,
        truncation=data.truncation or "disabled",
        parallel_tool_calls=data.parallel_tool_calls,
        text={"format": data.text.format.echo()},
        top_p=options.sampling.top_p,
        top_logprobs=data.top_logprobs,
        temperature=options.sampling.temperature,
        reasoning={"effort": data.reasoning.effort or None, "summary": data.reasoning.summary},
        max_output_tokens=data.max_output_tokens,
        metadata=data.metadata,
    )


class ResponseController(Controller):
    tags = ["openai"]
    exception_handlers: Any = error_handlers(TYPED_EVENTS)
    opt: Any = EMPTY_BODY

    @post("/v1/responses", status_code=200)
    async def respond(
        self, data: JSONBody[ResponsesRequest], request: ApiRequest, services: Rooms
    ) -> Response[bytes]:
        wish = await request.apart(read_request, data)
        model = await known(services, data.model)
        check_wish(wish, model)
        options = options_for(_options(data), model, services.config)
        exchange = Exchange(services, client_of(request), model, options)
        deltas = exchange.deltas(wish.chat(model, options))
        writer = ResponseWriter(_blank(data, options), parallel=wish.tools.parallel)
        strict = ["tools[].strict"] if wish.tools.unheld else []
        headers = warning_headers([*ignored_names(data), *strict])
        if data.stream:
            headers |= {"Cache-Control": "no-cache"}
        return EventAnswer(
            writer.stream(deltas) if data.stream else writer.whole(deltas),
            stream=data.stream,
            headers=headers,
            form=TYPED_EVENTS,
        )
