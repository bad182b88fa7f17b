"""The Anthropic dialect: `/v1/messages`."""

from __future__ import annotations

from litestar.types import ControllerRouterHandler

from daemon.api.anthropic.messages import MessagesController

CONTROLLERS: tuple[ControllerRouterHandler, ...] = (MessagesController,)
