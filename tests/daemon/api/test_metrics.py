"""`/metrics` against real requests: read back by the parser of those who define the format."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import AsyncIterator
from urllib.parse import quote

import pytest
from prometheus_client.parser import text_string_to_metric_families

from backends.scripted.script import Script
from daemon.api.application import create_routes
from daemon.metrics.names import MOST_NAMES, OTHER
from tests.daemon.api.rig import Rig, api_rig, until

COUNT = {"messages": [{"role": "user", "content": "count"}]}
Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Scraped:
    """One scrape; every series comes once, under a family that says what it is."""

    def __init__(self, text: str) -> None:
        self.series: Series = {}
        self.kinds: dict[str, str] = {}
        for family in text_string_to_metric_families(text):
            assert family.name not in self.kinds and family.documentation
            self.kinds[family.name] = family.type
            for sample in family.samples:
                key = sample.name, tuple(sorted(sample.labels.items()))
                assert key not in self.series
                self.series[key] = sample.value

    def value(self, name: str, **labels: str) -> float:
        return self.series.get((name, tuple(sorted(labels.items()))), 0)

    def total(self, name: str) -> float:
        return sum(value for (found, _), value in self.series.items() if found == name)

    def labels(self, label: str) -> set[str]:
        return {value for _, labels in self.series for key, value in labels if key == label}


async def scrape(rig: Rig) -> Scraped:
    answer = await rig.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return Scraped(answer.text)


@pytest.fixture
async def rig(tmp_path: pathlib.Path) -> AsyncIterator[Rig]:
    async with api_rig(tmp_path, num_parallel=2) as rig:
        await rig.add_model("one")
        yield rig


async def test_a_daemon_that_did_nothing_yet(rig: Rig) -> None:
    found = await scrape(rig)
    assert found.kinds == {
        "hearth_requests": "counter",
        "hearth_answers": "counter",
        "hearth_prompt_ids": "counter",
        "hearth_cached_ids": "counter",
        "hearth_completion_ids": "counter",
        "hearth_dropped_ids": "counter",
        "hearth_first_piece_seconds": "histogram",
        "hearth_decode_ids_per_second": "histogram",
        "hearth_queue_length": "gauge",
        "hearth_queue_oldest_seconds": "gauge",
        "hearth_loaded_models": "gauge",
        "hearth_model_resident_bytes": "gauge",
        "hearth_model_rows_used": "gauge",
        "hearth_model_rows_free": "gauge",
        "hearth_model_stalled": "gauge",
        "hearth_loads": "counter",
        "hearth_load_seconds": "counter",
        "hearth_worker_deaths": "counter",
        "hearth_conversions": "counter",
        "hearth_conversions_running": "gauge",
        "hearth_conversions_waiting": "gauge",
        "hearth_pulled_bytes": "counter",
    }
    assert all(value == 0 for value in found.series.values())
    again = await scrape(rig)
    labels = {"dialect": "hearth", "route": "/metrics", "status": "200"}
    assert again.value("hearth_requests_total", **labels) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "dialect", "extra"),
    [
        ("/api/chat", "ollama", {}),
        ("/v1/chat/completions", "openai", {}),
        ("/v1/messages", "anthropic", {"max_tokens": 100}),
    ],
)
async def test_each_dialect_counts_what_it_told(
    rig: Rig, path: str, dialect: str, extra: dict[str, int], stream: bool
) -> None:
    body = {"model": "one", "stream": stream, **COUNT, **extra}
    for _ in range(2):
        assert (await rig.post(path, **body)).status_code == 200
    found = await scrape(rig)
    labels = {"dialect": dialect, "route": path, "status": "200"}
    assert found.value("hearth_requests_total", **labels) == 2
    name = {"model": "one:latest"}
    assert found.value("hearth_answers_total", **name, outcome="stop") == 2
    told = await rig.post("/api/chat", model="one", stream=False, **COUNT)
    for kind in ("prompt", "completion"):
        expected = 2 * told.json()[{"prompt": "prompt_eval_count"}.get(kind, "eval_count")]
        assert found.value(f"hearth_{kind}_ids_total", **name) == expected > 0
    assert found.value("hearth_cached_ids_total", **name) == 0
    assert found.value("hearth_first_piece_seconds_count", **name) == 2
    assert found.value("hearth_decode_ids_per_second_count", **name) == 2
    assert found.value("hearth_decode_ids_per_second_sum", **name) > 0


async def test_ids_that_were_cut(rig: Rig) -> None:
    body = {"model": "one", "prompt": "count " * 100, "options": {"num_ctx": 64}, "stream": False}
    told = (await rig.post("/api/generate", **body)).json()
    found = await scrape(rig)
    dropped = found.value("hearth_dropped_ids_total", model="one:latest")
    assert dropped > 0
    assert told["prompt_eval_count"] == found.value("hearth_prompt_ids_total", model="one:latest")


async def test_answers_that_went_wrong_or_were_left(rig: Rig) -> None:
    for prompt in ("break", "crash"):
        answer = await rig.post("/api/generate", model="one", prompt=prompt)
        assert '"error"' in answer.text
    asked = {"model": "one", "prompt": "slow"}
    async with rig.client.stream("POST", "/api/generate", json=asked) as answer:
        lines = answer.aiter_lines()
        await anext(lines)
        found = await scrape(rig)
        assert found.value("hearth_loaded_models") == 1
        assert found.value("hearth_model_rows_used", model="one:latest") == 1
        assert found.value("hearth_model_rows_free", model="one:latest") == 1
        size = found.value("hearth_model_resident_bytes", model="one:latest", device="cpu")
        assert size == rig.services.residency.loaded()[0].size > 0
    await until(lambda: not any(model.users for model in rig.services.residency.loaded()))
    found = await scrape(rig)
    name = {"model": "one:latest"}
    assert found.value("hearth_answers_total", **name, outcome="failed") == 2
    assert found.value("hearth_answers_total", **name, outcome="cancelled") == 1
    assert found.value("hearth_worker_deaths_total", **name) == 1
    assert found.value("hearth_loads_total", **name, outcome="loaded") == 2
    assert found.value("hearth_load_seconds_total", **name) > 0
    assert found.value("hearth_completion_ids_total", **name) == 0


async def test_who_waits_is_seen(tmp_path: pathlib.Path) -> None:
    async with api_rig(tmp_path, num_parallel=1) as rig:
        await rig.add_model("one")
        asked = {"model": "one", "prompt": "slow"}
        async with rig.client.stream("POST", "/api/generate", json=asked) as answer:
            lines = answer.aiter_lines()  # dropped, it would close the answer
            await anext(lines)
            waiting = asyncio.create_task(rig.post("/api/chat", model="one", **COUNT))
            await until(rig.services.residency.queue)
            found = await scrape(rig)
            assert found.value("hearth_queue_length") == 1
            assert found.value("hearth_queue_oldest_seconds") > 0
            waiting.cancel()
            await until(lambda: not rig.services.residency.queue())
        found = await scrape(rig)
    assert found.value("hearth_queue_length") == found.value("hearth_queue_oldest_seconds") == 0
    labels = {"dialect": "ollama", "route": "/api/chat", "status": "499"}
    assert found.value("hearth_requests_total", **labels) == 1
    name = {"model": "one:latest"}
    assert found.value("hearth_answers_total", **name, outcome="cancelled") >= 1


HOSTILE = [
    'x"} evil 1\n',
    "ünï\\cödé",
    "../../etc/passwd",
    "a" * 300,
    "hf.co/x/y:z\n# TYPE",
    "ONE",
    "",
    "oNe:LaTeSt",
]


async def test_strings_of_clients_never_become_labels(rig: Rig) -> None:
    before = (await scrape(rig)).series.keys()
    for name in HOSTILE:
        for path in ("/api/chat", "/api/generate", "/v1/chat/completions", "/v1/messages"):
            await rig.post(path, model=name, prompt="count", max_tokens=5, stream=False, **COUNT)
        await rig.post("/api/embed", model=name, input="a")
        place = quote(name.strip(), safe="")
        await rig.client.get(f"/v1/models/{place}")
        await rig.client.get(f"/nowhere/{place}", headers={"X-Api-Key": place})
        await rig.client.request("BREW", "/api/chat", headers={"Host": "evil.example"})
    found = await scrape(rig)
    assert found.labels("model") == {"one:latest"}
    routes = {route.path_format for route in create_routes(rig.services).routes} | {OTHER}
    assert found.labels("route") <= routes and OTHER in found.labels("route")
    assert found.labels("dialect") <= {"ollama", "openai", "anthropic", "hearth", OTHER}
    assert all(status.isdigit() and len(status) == 3 for status in found.labels("status"))
    assert before < found.series.keys()


async def test_a_shelf_that_grows_does_not_grow_the_scrape(rig: Rig) -> None:
    for number in range(MOST_NAMES + 5):
        rig.services.metrics.count_answer(f"m{number}:latest", "stop")
        rig.services.residency.tally.loaded(f"m{number}:latest", 10**9)
    found = await scrape(rig)
    assert len(found.labels("model")) == MOST_NAMES + 1
    assert found.value("hearth_answers_total", model=OTHER, outcome="stop") == 5
    assert found.total("hearth_answers_total") == MOST_NAMES + 5
    assert found.total("hearth_load_seconds_total") == MOST_NAMES + 5
    assert found.value("hearth_loads_total", model=OTHER, outcome="loaded") == 5


async def test_texts_for_vectors_are_prompts_too(tmp_path: pathlib.Path) -> None:
    async with api_rig(tmp_path) as rig:
        await rig.add_model("two", script=Script(vector_size=4))
        answer = await rig.post("/api/embed", model="two", input=["abc", "d"])
        told = answer.json()["prompt_eval_count"]
        found = await scrape(rig)
    assert found.value("hearth_prompt_ids_total", model="two:latest") == told > 0
