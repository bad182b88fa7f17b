"""Two daemons of one household: the second gets its model from the first, with a key and by digest."""

from __future__ import annotations

import asyncio
import json
import pathlib

import httpx

from tests.e2e.daemon_process import running
from tests.e2e.test_kills import create, names, stream_lines
from tests.registry.server import Registry

CONFIG: dict[str, object] = {"model_format": "gguf", "model_family": "llama"}


def pull(url: str, model: str) -> list[dict[str, object]]:
    return stream_lines(f"{url}/api/pull", {"model": model, "insecure": True})


def test_a_model_is_pulled_from_another_daemon(
    tmp_path: pathlib.Path, small_gguf: pathlib.Path
) -> None:
    with (
        running(tmp_path / "first", HEARTH_SHARE="1") as first,
        running(tmp_path / "second") as second,
    ):
        create(first, "small", small_gguf)
        model = f"{first.url.removeprefix('http://')}/library/small"
        assert pull(second.url, model)[-1] == {"status": "success"}
        assert f"{model}:latest" in names(second)
        body = {"model": model, "prompt": "x", "raw": True, "stream": False}
        body |= {"options": {"num_predict": 3, "temperature": 0}}
        answers = [
            httpx.post(f"{daemon.url}/api/generate", json=body | {"model": name}, trust_env=False)
            for daemon, name in ((first, "small"), (second, model))
        ]
        assert answers[0].json()["response"] == answers[1].json()["response"]


async def test_a_mirror_spares_the_registry(
    tmp_path: pathlib.Path, small_gguf: pathlib.Path
) -> None:
    data = small_gguf.read_bytes()
    async with Registry() as registry:
        registry.add_model("library/m", "latest", [("model", data)], CONFIG)
        found = await asyncio.to_thread(_pulled_beside, tmp_path, small_gguf, registry.host)
        assert found[-1] == {"status": "success"}
        assert sum(registry.sent_bytes.values()) < 2 * len(json.dumps(CONFIG))


def _pulled_beside(
    folder: pathlib.Path, path: pathlib.Path, registry: str
) -> list[dict[str, object]]:
    with running(folder / "first", HEARTH_SHARE="1") as first:
        create(first, "small", path)
        with running(folder / "second", HEARTH_MIRRORS=first.url) as second:
            return pull(second.url, f"{registry}/library/m")
