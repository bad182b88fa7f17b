"""`/v1/rerank` and `/rerank`, where the clients of Jina, Cohere and llama.cpp look for it."""

from __future__ import annotations

from typing import Any

from litestar import Controller, Response, post
from litestar.params import JSONBody

from daemon.api.framing import EventAnswer, error_handlers
from daemon.api.openai.admission import known
from daemon.api.openai.errors import EMPTY_BODY, EVENTS
from daemon.api.ranking import Ranking, RankRequest, read_documents, require_ranking
from daemon.api.request import ApiRequest, client_of
from daemon.api.services import Rooms


class RankingController(Controller):
    tags = ["openai"]
    exception_handlers: Any = error_handlers(EVENTS)
    opt: Any = EMPTY_BODY

    @post(["/v1/rerank", "/rerank"], status_code=200)
    async def rank(
        self, data: JSONBody[RankRequest], request: ApiRequest, services: Rooms
    ) -> Response[bytes]:
        documents = read_documents(data)
        model = await known(services, data.model)
        require_ranking(model)
        ranking = Ranking(services, client_of(request), model, data, documents)
        return EventAnswer(ranking.answers(), stream=False, form=EVENTS)
