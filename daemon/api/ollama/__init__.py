"""The Ollama dialect: `/api/*`."""

from __future__ import annotations

from litestar.types import ControllerRouterHandler

from daemon.api.ollama.blobs import BlobController
from daemon.api.ollama.creation import CreationController
from daemon.api.ollama.embedding_routes import EmbeddingController
from daemon.api.ollama.generation import GenerationController
from daemon.api.ollama.ranking_routes import RankingController
from daemon.api.ollama.registry_routes import RegistryController
from daemon.api.ollama.shelf import ShelfController

CONTROLLERS: tuple[ControllerRouterHandler, ...] = (
    GenerationController,
    EmbeddingController,
    RankingController,
    ShelfController,
    CreationController,
    BlobController,
    RegistryController,
)
