"""The 401 of a request without a valid key, in the dialect of its path."""

from __future__ import annotations

from typing import Any

from litestar.datastructures import Headers
from litestar.types import Scope, Send

from daemon.api.anthropic.errors import new_id, request_headers
from daemon.api.anthropic.wire import ErrorAnswer
from daemon.api.anthropic.wire import ErrorDetail as AnthropicDetail
from daemon.api.dialects import dialect_of
from daemon.api.framing import JSON, ErrorBody, encoded
from daemon.api.openai.errors import ErrorBody as OpenAIBody
from daemon.api.openai.errors import ErrorDetail as OpenAIDetail

_WHY = "this daemon needs a valid key: Authorization: Bearer hk_..., or x-api-key"
_BEARER = (b"www-authenticate", b"Bearer")
# Only a browser that opens a page is to ask its user; in programs this would be one scheme too many.
_BASIC = (b"www-authenticate", b'Basic realm="Hearth"')


async def refuse(scope: Scope, send: Send) -> None:
    """Answers 401. The body of the request is not read."""
    headers = Headers.from_scope(scope)
    body, extra = _body(str(scope["path"]))
    data = encoded(body)
    fields = [
        (b"content-type", JSON.encode()),
        (b"content-length", str(len(data)).encode()),
        _BEARER,
        *([_BASIC] if "text/html" in headers.get("accept", "") else []),
        *((name.encode(), value.encode()) for name, value in extra.items()),
    ]
    await send({"type": "http.response.start", "status": 401, "headers": fields})
    await send({"type": "http.response.body", "body": data, "more_body": False})


def _body(path: str) -> tuple[Any, dict[str, str]]:
    """(body, headers)"""
    dialect = dialect_of(path)
    if dialect == "anthropic":
        request_id = new_id("req")
        detail = AnthropicDetail("authentication_error", _WHY)
        return ErrorAnswer(error=detail, request_id=request_id), request_headers(request_id)
    if dialect == "openai":
        kind = "invalid_request_error"
        return OpenAIBody(OpenAIDetail(message=_WHY, type=kind, code="invalid_api_key")), {}
    # Word for word: clients of this dialect act on it.
    return ErrorBody("unauthorized"), {}
