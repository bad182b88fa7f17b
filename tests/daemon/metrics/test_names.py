from __future__ import annotations

from daemon.api.dialects import dialect_of
from daemon.metrics.names import OTHER, BoundedNames


def test_the_first_names_stay_and_later_ones_are_other() -> None:
    names = BoundedNames(2)
    assert [names.label(name) for name in ("a", "b", "c", "a", "d", "b")] == [
        "a", "b", OTHER, "a", OTHER, "b",
    ]  # fmt: skip


def test_routes_belong_to_dialects() -> None:
    found = {
        route: dialect_of(route)
        for route in (
            "/", "/api/chat", "/api/hearth/du", "/metrics", "/v1/messages/count_tokens",
            "/v1/messages", "/v1/responses", "/rerank", OTHER,
        )
    }  # fmt: skip
    assert found == {
        "/": "ollama",
        "/api/chat": "ollama",
        "/api/hearth/du": "hearth",
        "/metrics": "hearth",
        "/v1/messages/count_tokens": "anthropic",
        "/v1/messages": "anthropic",
        "/v1/responses": "openai",
        "/rerank": "openai",
        OTHER: OTHER,
    }
