"""`/api/embed` and the older `/api/embeddings`: texts in, vectors out (contract.md §1.8, 1.9, 2.11).

The worker makes the JSON of each vector; here it is only put into its place. Any model may be asked:
one that has no vectors to give refuses itself.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from litestar import Controller, Response, post
from litestar.params import JSONBody

from daemon.api.framing import EventAnswer
from daemon.api.lookup import KnownModel, find, know
from daemon.api.ollama.answers import Timing
from daemon.api.ollama.keep_alive import parse_keep_alive
from daemon.api.options import resolve_options, typed_value
from daemon.api.request import ApiRequest, client_of
from daemon.api.services import Rooms, Services
from daemon.api.vectors import Vectors, read_texts
from daemon.errors import Invalid, NotFound


class EmbedRequest(msgspec.Struct, frozen=True, kw_only=True):
    model: str = ""
    input: Any = None
    truncate: bool | None = None
    dimensions: int = 0
    options: dict[str, Any] | None = None
    keep_alive: Any = None


class EmbedAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Durations are ns; loading alone has none."""

    model: str
    embeddings: tuple[msgspec.Raw, ...]
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_count: int = 0


class LegacyEmbedRequest(msgspec.Struct, frozen=True, kw_only=True):
    model: str = ""
    prompt: str = ""
    options: dict[str, Any] | None = None
    keep_alive: Any = None


class LegacyEmbedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    embedding: msgspec.Raw


async def embedded(
    vectors: Vectors, model: str, timing: Timing
) -> AsyncGenerator[EmbedAnswer, None]:
    async with await vectors.lease() as lease:
        timing.ready()
        parts = [part async for part in vectors.of(lease)]
    if not vectors.texts:
        yield EmbedAnswer(model=model, embeddings=())
        return
    metrics = timing.durations()
    yield EmbedAnswer(
        model=model,
        embeddings=tuple(msgspec.Raw(one) for part in parts for one in part.json),
        prompt_eval_count=sum(part.prompt_tokens for part in parts),
        **metrics,
    )


async def embedded_legacy(vectors: Vectors) -> AsyncGenerator[LegacyEmbedAnswer, None]:
    async with await vectors.lease() as lease:
        found = [one async for part in vectors.of(lease) for one in part.json]
    yield LegacyEmbedAnswer(embedding=msgspec.Raw(found[0] if found else b"[]"))


async def known(services: Services, asked: str) -> KnownModel:
    """As `lookup`, with the text that these routes have for what is missing."""
    try:
        stored = await find(services, asked)
    except NotFound:
        raise NotFound(f'model "{asked}" not found, try pulling it first') from None
    return await know(services, asked, stored)


def context_limit(
    options: dict[str, Any] | None, model: KnownModel, services: Services
) -> int | None:
    """num_ctx as it was sent, however small. Raises BadOption for any option of the wrong type."""
    parameters = model.stored.parameters
    default = services.config.context_length
    resolve_options(options, parameters, default_context_length=default)
    value = {**parameters, **(options or {})}.get("num_ctx")
    return None if value is None else typed_value("num_ctx", "integer", value)


class EmbeddingController(Controller):
    tags = ["ollama"]

    @post("/api/embed", status_code=200)
    async def embed(
        self, data: JSONBody[EmbedRequest], request: ApiRequest, services: Rooms
    ) -> Response[bytes]:
        timing = Timing()
        keep_alive = parse_keep_alive(data.keep_alive)
        if not data.model.strip():
            raise NotFound("model '' not found")
        texts = read_texts(data.input)
        model = await known(services, data.model)
        vectors = Vectors(
            services=services,
            client=client_of(request),
            model=model,
            keep_alive=keep_alive,
            limit=context_limit(data.options, model, services),
            texts=texts,
            truncate=data.truncate is not False,
            dimensions=data.dimensions,
        )
        return EventAnswer(embedded(vectors, data.model, timing), stream=False)

    @post("/api/embeddings", status_code=200)
    async def embeddings(
        self, data: JSONBody[LegacyEmbedRequest], request: ApiRequest, services: Rooms
    ) -> Response[bytes]:
        """One text, one vector, no metrics; a text that is too long is an error."""
        keep_alive = parse_keep_alive(data.keep_alive)
        if not data.model.strip():
            raise Invalid("model is required")
        model = await known(services, data.model)
        vectors = Vectors(
            services=services,
            client=client_of(request),
            model=model,
            keep_alive=keep_alive,
            limit=context_limit(data.options, model, services),
            texts=(data.prompt,) if data.prompt else (),
            truncate=False,
        )
        return EventAnswer(embedded_legacy(vectors), stream=False)
