"""`/api/rerank`: what `/v1/rerank` answers, with this dialect's errors and its `keep_alive`."""

from __future__ import annotations

from typing import Any

from litestar import Controller, Response, post
from litestar.params import JSONBody

from daemon.api.framing import EventAnswer
from daemon.api.lookup import find, know
from daemon.api.ollama.keep_alive import parse_keep_alive
from daemon.api.ranking import Ranking, RankRequest, read_documents, require_ranking
from daemon.api.request import ApiRequest, client_of
from daemon.api.services import Rooms
from daemon.errors import Invalid


class KeptRankRequest(RankRequest, frozen=True, kw_only=True):
    keep_alive: Any = None


class RankingController(Controller):
    tags = ["ollama"]

    @post("/api/rerank", status_code=200)
    async def rank(
        self, data: JSONBody[KeptRankRequest], request: ApiRequest, services: Rooms
    ) -> Response[bytes]:
        keep_alive = parse_keep_alive(data.keep_alive)
        if not data.model.strip():
            raise Invalid("model is required")
        documents = read_documents(data)
        model = await know(services, data.model, await find(services, data.model))
        require_ranking(model)
        client = client_of(request)
        ranking = Ranking(services, client, model, data, documents, keep_alive)
        return EventAnswer(ranking.answers(), stream=False)
