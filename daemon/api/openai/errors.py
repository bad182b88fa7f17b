"""The one error shape of this dialect, and its server-sent events: contract.md §11.1.

The official clients try failures from 500 up again by themselves; where that cannot help, a header
tells them so.
"""

from __future__ import annotations

import msgspec

from daemon.api.framing import EVENT_STREAM, Form, event_frame, retry_headers
from daemon.errors import DaemonError, NotFound, TooLong

# What clients of this dialect know for a request without a body, as a setting of a controller.
EMPTY_BODY = {"empty_body": "EOF"}
_TYPES = {400: "invalid_request_error", 404: "not_found_error"}


class ErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    """`code` is set where programs act on it: a model that is not here, a prompt that is too long."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(msgspec.Struct, frozen=True):
    error: ErrorDetail


def error_code(error: DaemonError) -> str | None:
    match error:
        case NotFound():
            return "model_not_found"
        case TooLong():
            return "context_length_exceeded"
        case _:
            return None


def error_body(error: DaemonError) -> ErrorBody:
    kind = _TYPES.get(error.status, "api_error")
    return ErrorBody(ErrorDetail(message=error.message, type=kind, code=error_code(error)))


EVENTS = Form(
    media_type=EVENT_STREAM,
    frame=event_frame,
    error_body=error_body,
    error_frame=event_frame,
    error_headers=retry_headers,
    end=b"data: [DONE]\n\n",
)
