"""`/v1/embeddings`: contract.md §11.4. The worker has made both forms of each vector already."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from litestar import Controller, Response, post
from litestar.params import JSONBody

from backends.types import Embedded
from daemon.api.framing import EventAnswer, error_handlers
from daemon.api.openai.admission import known
from daemon.api.openai.errors import EMPTY_BODY, EVENTS
from daemon.api.options import typed_value
from daemon.api.request import ApiRequest, client_of
from daemon.api.services import Rooms
from daemon.api.vectors import Vectors, read_texts
from daemon.errors import Invalid

_FORMATS = ("float", "base64")


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    model: str = ""
    input: Any = None
    dimensions: int = 0
    encoding_format: str = "float"


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """`embedding` is a ready-made list of numbers, or base64 of little-endian float32."""

    object: str = "embedding"
    embedding: msgspec.Raw | str
    index: int


class EmbeddingUsage(msgspec.Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, frozen=True, kw_only=True):
    object: str = "list"
    data: tuple[Embedding, ...]
    model: str
    usage: EmbeddingUsage


def _read_input(value: Any) -> tuple[str, ...]:
    """An empty text is a text here. Raises Invalid."""
    texts = ("",) if value == "" else read_texts(value)
    if not texts:
        raise Invalid("invalid input")
    return texts


def _read_format(text: str) -> str:
    name = text.lower()
    if name not in _FORMATS:
        raise Invalid(
            f"Invalid value for 'encoding_format' = {text}. Supported values: {list(_FORMATS)}."
        )
    return name


def _values(part: Embedded, encoding: str) -> list[msgspec.Raw | str]:
    if encoding == "base64":
        return [base64.b64encode(vector).decode() for vector in part.vectors]
    return [msgspec.Raw(text) for text in part.json]


async def _embedded(
    vectors: Vectors, model: str, encoding: str
) -> AsyncGenerator[EmbeddingList, None]:
    async with await vectors.lease() as lease:
        parts = [part async for part in vectors.of(lease)]
    values = [value for part in parts for value in _values(part, encoding)]
    tokens = sum(part.prompt_tokens for part in parts)
    yield EmbeddingList(
        data=tuple(Embedding(embedding=value, index=i) for i, value in enumerate(values)),
        model=model,
        usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens),
    )


class EmbeddingController(Controller):
    tags = ["openai"]
    exception_handlers: Any = error_handlers(EVENTS)
    opt: Any = EMPTY_BODY

    @post("/v1/embeddings", status_code=200)
    async def embed(
        self, data: JSONBody[EmbeddingRequest], request: ApiRequest, services: Rooms
    ) -> Response[bytes]:
        texts = _read_input(data.input)
        encoding = _read_format(data.encoding_format)
        model = await known(services, data.model)
        limit = model.stored.parameters.get("num_ctx")
        vectors = Vectors(
            services=services,
            client=client_of(request),
            model=model,
            limit=None if limit is None else typed_value("num_ctx", "integer", limit),
            texts=texts,
            dimensions=data.dimensions,
        )
        return EventAnswer(_embedded(vectors, data.model, encoding), stream=False, form=EVENTS)
