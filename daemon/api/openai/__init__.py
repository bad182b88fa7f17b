"""The OpenAI dialect: `/v1/*`."""

from __future__ import annotations

from litestar.types import ControllerRouterHandler

from daemon.api.openai.chat_routes import CompletionController
from daemon.api.openai.embedding_routes import EmbeddingController
from daemon.api.openai.model_routes import ModelController
from daemon.api.openai.ranking_routes import RankingController
from daemon.api.openai.responses.routes import ResponseController

CONTROLLERS: tuple[ControllerRouterHandler, ...] = (
    CompletionController,
    ResponseController,
    EmbeddingController,
    RankingController,
    ModelController,
)
