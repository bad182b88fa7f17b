"""Which model a request is for, and whether that model can do what is asked."""

from __future__ import annotations

from daemon.api.conversation import check_images, check_think
from daemon.api.lookup import KnownModel, find, know, require_capability, require_completion
from daemon.api.openai.reading import ChatWish
from daemon.api.services import Services
from daemon.errors import Invalid


async def known(services: Services, asked: str) -> KnownModel:
    """Raises Invalid, NotFound, Forbidden, LoadFailed."""
    if not asked.strip():
        raise Invalid("model is required")
    return await know(services, asked, await find(services, asked))


def check_wish(wish: ChatWish, model: KnownModel) -> None:
    """Raises Invalid, then NotYet, for what this model cannot do."""
    check_think(wish.think, model)
    require_completion(model, "chat")
    if wish.tools.offered:
        require_capability(model, "tools")
    check_images(wish.messages, model)
