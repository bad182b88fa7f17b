"""How errors leave in this dialect, alone or as the last event of a stream, with a request id."""

from __future__ import annotations

import secrets
from typing import Any

import msgspec
from litestar import Response
from litestar.exceptions import HTTPException

from daemon.api.anthropic.wire import ErrorAnswer, ErrorDetail
from daemon.api.framing import (
    EVENT_STREAM,
    Form,
    as_daemon_error,
    event_frame,
    json_response,
    retry_headers,
)
from daemon.errors import DaemonError, TooLong

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


def new_id(prefix: str) -> str:
    """`prefix` and 24 hexadecimal digits."""
    return f"{prefix}_{secrets.token_hex(12)}"


def request_headers(request_id: str) -> dict[str, str]:
    """Where the official clients look for the id."""
    return {"request-id": request_id}


def _answer_for(error: DaemonError, request_id: str) -> ErrorAnswer:
    # Agents compact their history when they read these first words.
    text = f"prompt is too long: {error.message}" if isinstance(error, TooLong) else error.message
    detail = ErrorDetail(_TYPES.get(error.status, "api_error"), text)
    return ErrorAnswer(error=detail, request_id=request_id)


def _named_frame(value: msgspec.Struct) -> bytes:
    """A server-sent event named by the Struct's own tag, which its `type` says too."""
    return event_frame(value, str(value.__struct_config__.tag))


def event_form(request_id: str) -> Form:
    """How answers to this request are sent when they are streamed."""
    return Form(
        media_type=EVENT_STREAM,
        frame=_named_frame,
        error_body=lambda error: _answer_for(error, request_id),
        error_frame=_named_frame,
        error_headers=retry_headers,
    )


def _failed(_: Any, error: Exception) -> Response[bytes]:
    request_id = new_id("req")
    known = as_daemon_error(error)
    headers = retry_headers(known) | request_headers(request_id)
    return json_response(_answer_for(known, request_id), known.status, headers)


# What controllers of this dialect answer when a request fails before its answer begins. Litestar's own
# type for it holds types that nobody can name.
ERROR_HANDLERS: Any = {HTTPException: _failed, Exception: _failed}
