"""The daemon as the command line sees it: one base address, JSON requests, lines of JSON."""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Generator, Iterator, Mapping
from typing import Any, Self

import httpx
import msgspec

from daemon.config import client_url

_MAX_LINE_BYTES = 8 << 20
UNAUTHORIZED = 401


class ClientError(Exception):
    """One sentence for the user. `status` is the HTTP status, 0 when there was no answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """Owned by one command. Proxies of the environment are for the registry, not for the LAN."""

    def __init__(self, base_url: str | None = None) -> None:
        self.base_url = base_url or client_url(os.environ)
        headers = {"Accept": "application/json"}
        self._has_key = False
        if key := os.environ.get("HEARTH_KEY") or os.environ.get("OLLAMA_API_KEY"):
            self._has_key = True
            headers["Authorization"] = f"Bearer {key}"
        self._http = httpx.Client(
            base_url=self.base_url,
            timeout=None,
            trust_env=False,
            headers=headers,
            verify=_trusted(os.environ),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def request(self, method: str, path: str, body: object = None, **arguments: Any) -> Any:
        """The decoded answer, None when its body is empty. Raises ClientError."""
        if body is not None:
            arguments["content"] = msgspec.json.encode(body)
        with self._reaching():
            answer = self._http.request(method, path, **arguments)
        if answer.status_code >= 400:
            raise self._refused(answer.status_code, answer.content)
        return msgspec.json.decode(answer.content) if answer.content else None

    def exists(self, path: str) -> bool:
        with self._reaching():
            return self._http.head(path).status_code < 400

    def stream(self, path: str, body: object) -> Iterator[dict[str, Any]]:
        """Each line of the answer. Closing the iterator closes the connection, which cancels.

        Raises ClientError, also for an error line in the middle.
        """
        content = msgspec.json.encode(body)
        with self._reaching(), self._http.stream("POST", path, content=content) as answer:
            if answer.status_code >= 400:
                raise self._refused(answer.status_code, answer.read())
            for line in answer.iter_lines():
                if len(line) > _MAX_LINE_BYTES:
                    raise ClientError("the daemon sent a line that is too long")
                event = msgspec.json.decode(line)
                if event.get("error"):
                    raise ClientError(event["error"])
                yield event

    def _refused(self, status: int, body: bytes) -> ClientError:
        if status != UNAUTHORIZED:
            return ClientError(_error_text(body), status)
        why = (
            "does not know the key in HEARTH_KEY" if self._has_key else "wants a key in HEARTH_KEY"
        )
        return ClientError(
            f"the daemon at {self.base_url} {why}; hearth key add NAME on its machine makes one",
            status,
        )

    @contextlib.contextmanager
    def _reaching(self) -> Generator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise ClientError(
                    f"the certificate of {self.base_url} is not trusted: HEARTH_CA names whom to trust"
                ) from error
            raise ClientError(
                f"no daemon answers at {self.base_url}; start one with: hearth serve"
            ) from error
        except httpx.HTTPError as error:
            raise ClientError(f"the connection to {self.base_url} broke: {error}") from error
        except msgspec.DecodeError as error:
            raise ClientError(f"{self.base_url} does not answer in JSON") from error


def _trusted(environ: Mapping[str, str]) -> bool | ssl.SSLContext:
    """The usual authorities, or the owner's own alone. Raises ClientError."""
    path = environ.get("HEARTH_CA")
    if not path:
        return True
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:
        raise ClientError(f"HEARTH_CA={path}: no certificate can be read there") from error


class _ErrorBody(msgspec.Struct):
    error: str = ""


def _error_text(body: bytes) -> str:
    try:
        text = msgspec.json.decode(body, type=_ErrorBody).error
    except msgspec.MsgspecError:
        text = body.decode(errors="replace").strip()
    return text or "the daemon refused without a reason"
