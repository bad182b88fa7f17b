from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import httpx
import msgspec
import pytest
from litestar import Litestar, Response, post

from daemon.api import framing
from daemon.api.framing import EVENT_STREAM, LINES, EventAnswer, Form, event_frame, timestamp
from daemon.errors import Busy, NotFound
from tests.daemon.api.serving import served


class Event(msgspec.Struct):
    text: str


class Source:
    """A generator whose end can be seen from outside."""

    def __init__(self, *steps: str | Exception, endless: bool = False) -> None:
        self.steps = steps
        self.endless = endless
        self.started = asyncio.Event()
        self.closed = asyncio.Event()

    async def events(self) -> AsyncGenerator[Event, None]:
        try:
            self.started.set()
            for step in self.steps:
                if isinstance(step, Exception):
                    raise step
                yield Event(step)
            if self.endless:
                await asyncio.Event().wait()
        finally:
            self.closed.set()


@asynccontextmanager
async def serving(source: Source, *, stream: bool, form: Form = LINES) -> AsyncIterator[str]:
    @post("/x", status_code=200)
    async def handler() -> Response[bytes]:
        return EventAnswer(
            source.events(),
            stream=stream,
            form=form,
            merge=lambda events: Event("".join(event.text for event in events)),
        )

    async with served(Litestar([handler], logging_config=None, openapi_config=None)) as base:
        yield base


async def ask(source: Source, *, stream: bool, form: Form = LINES) -> httpx.Response:
    async with serving(source, stream=stream, form=form) as base, httpx.AsyncClient() as client:
        return await client.post(f"{base}/x")


async def test_a_stream_is_one_object_a_line() -> None:
    source = Source("a", "ü\n<b>")
    answer = await ask(source, stream=True)
    assert answer.text == '{"text":"a"}\n{"text":"ü\\n<b>"}\n'
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.headers["transfer-encoding"] == "chunked"
    assert source.closed.is_set()


async def test_without_a_stream_all_is_merged_into_one_object() -> None:
    answer = await ask(Source("a", "b"), stream=False)
    assert answer.text == '{"text":"ab"}'
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert answer.headers["content-length"] == "13"


@pytest.mark.parametrize("stream", [True, False])
async def test_an_error_before_anything_else_has_a_status(stream: bool) -> None:
    answer = await ask(Source(NotFound("model 'x' not found")), stream=stream)
    assert answer.status_code == 404
    assert answer.json() == {"error": "model 'x' not found"}
    assert answer.headers["content-type"].startswith("application/json")


async def test_an_error_later_is_the_last_line() -> None:
    source = Source("a", Busy("too much"))
    answer = await ask(source, stream=True)
    assert answer.status_code == 200
    assert answer.text == '{"text":"a"}\n{"error":"too much"}\n'
    assert source.closed.is_set()


async def test_without_a_stream_a_late_error_still_has_a_status() -> None:
    answer = await ask(Source("a", Busy("too much")), stream=False)
    assert (answer.status_code, answer.json()) == (503, {"error": "too much"})


async def test_a_timeout_inside_the_events_is_an_error_like_others() -> None:
    answer = await ask(Source("a", TimeoutError("secret")), stream=True)
    assert "internal error" in answer.text
    assert "secret" not in answer.text


async def test_a_defect_is_logged_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    answer = await ask(Source(ZeroDivisionError("secret")), stream=True)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "secret" in caplog.text


FORM = Form(
    media_type=EVENT_STREAM,
    frame=lambda event: event_frame(event, "piece"),
    error_body=lambda error: {"problem": error.message},
    error_frame=event_frame,
    error_headers=lambda error: {"X-Status": str(error.status)},
    end=b"data: end\n\n",
)


async def test_a_dialect_has_its_own_form_of_sending() -> None:
    answer = await ask(Source("a", "b\n"), stream=True, form=FORM)
    assert answer.headers["content-type"] == EVENT_STREAM
    assert answer.text == (
        'event: piece\ndata: {"text":"a"}\n\nevent: piece\ndata: {"text":"b\\n"}\n\ndata: end\n\n'
    )
    whole = await ask(Source("a", "b"), stream=False, form=FORM)
    assert whole.text == '{"text":"ab"}'


@pytest.mark.parametrize("stream", [True, False])
async def test_errors_have_the_form_of_the_dialect(stream: bool) -> None:
    answer = await ask(Source(NotFound("no")), stream=stream, form=FORM)
    assert (answer.status_code, answer.json()) == (404, {"problem": "no"})
    assert answer.headers["x-status"] == "404"


async def test_a_late_error_is_the_last_frame_and_nothing_follows() -> None:
    answer = await ask(Source("a", Busy("much")), stream=True, form=FORM)
    assert answer.text == 'event: piece\ndata: {"text":"a"}\n\ndata: {"problem":"much"}\n\n'


async def _until(flag: asyncio.Event) -> None:
    async with asyncio.timeout(5):
        await flag.wait()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("steps", [(), ("a",)])
async def test_a_client_that_leaves_closes_the_source(stream: bool, steps: tuple[str, ...]) -> None:
    source = Source(*steps, endless=True)
    async with serving(source, stream=stream) as base:
        client = asyncio.create_task(_post_and_wait(base))
        await _until(source.started)
        await asyncio.sleep(0.05)
        assert not source.closed.is_set()
        client.cancel()
        await _until(source.closed)


async def _post_and_wait(base: str) -> None:
    async with httpx.AsyncClient(timeout=None) as client:
        await client.post(f"{base}/x")


async def test_a_client_that_stops_reading_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "SEND_SECONDS", 0.2)
    source = Source(*(["x" * 1_000_000] * 200))
    async with serving(source, stream=True) as base:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(base.rsplit(":")[-1]))
        writer.write(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        await reader.readexactly(100)
        await _until(source.closed)
        writer.close()


def test_timestamps_have_six_digits_and_a_z() -> None:
    assert len(timestamp()) == len("2026-01-01T00:00:00.000000Z")
    assert timestamp().endswith("Z")
