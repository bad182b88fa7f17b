"""An adapter through the daemon: uploaded, created, answered with as llama.cpp answers with it."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.daemon_process import DaemonProcess
from tests.models.random_adapter import make_adapter
from tests.models.random_gguf import make_gguf
from tests.models.reference import LlamaCpp

PROMPT = "The quick brown fox jumps over the lazy dog"
COUNT = 10


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, pathlib.Path]:
    folder = tmp_path_factory.mktemp("adapted")
    base = make_gguf(folder / "base.gguf", types="F32")
    return base, make_adapter(folder / "lora.gguf", base)


@pytest.fixture(params=["onnx", "mlx"])
def shelf(
    request: pytest.FixtureRequest, daemon: DaemonProcess, tmp_path: pathlib.Path
) -> Iterator[DaemonProcess]:
    """A daemon for each backend."""
    if request.param == "onnx":
        yield daemon
        return
    with DaemonProcess(tmp_path / "home", HEARTH_BACKEND=request.param) as process:
        yield process


def upload(daemon: DaemonProcess, path: pathlib.Path) -> str:
    digest = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    answer = httpx.post(
        f"{daemon.url}/api/blobs/{digest}", content=path.read_bytes(), trust_env=False
    )
    assert answer.status_code in (200, 201)
    return digest


def post(daemon: DaemonProcess, path: str, **body: object) -> httpx.Response:
    body = {"stream": False} | body
    return httpx.post(f"{daemon.url}{path}", json=body, timeout=120, trust_env=False)


def answer(daemon: DaemonProcess, model: str) -> str:
    options = {"temperature": 0, "num_predict": COUNT, "num_ctx": 256}
    found = post(
        daemon, "/api/generate", model=model, prompt=PROMPT, raw=True, options=options
    ).json()
    assert found["eval_count"] == COUNT
    return found["response"]


def expected(base: pathlib.Path, adapter: pathlib.Path | None) -> str:
    with LlamaCpp(base, adapter=adapter) as model:
        return model.complete(model.tokenize(PROMPT, add_special=True), COUNT)


def test_the_answers_are_llama_cpps(
    shelf: DaemonProcess, files: tuple[pathlib.Path, pathlib.Path]
) -> None:
    (base, adapter), daemon = files, shelf
    weights = {"base.gguf": upload(daemon, base)}
    assert post(daemon, "/api/create", model="plain", files=weights).is_success
    digest = upload(daemon, adapter)
    created = post(
        daemon, "/api/create", model="tuned", **{"from": "plain"}, adapters={"lora.gguf": digest}
    )
    assert created.json() == {"status": "success"}
    plain, tuned = answer(daemon, "plain"), answer(daemon, "tuned")
    assert plain == expected(base, None)
    assert tuned == expected(base, adapter)
    assert plain != tuned
    # The Modelfile that show gives makes the same model again.
    shown = post(daemon, "/api/show", model="tuned").json()
    again = post(daemon, "/api/create", model="again", modelfile=shown["modelfile"])
    assert again.json() == {"status": "success"}
    assert answer(daemon, "again") == tuned
    running = httpx.get(f"{daemon.url}/api/ps", trust_env=False).json()["models"]
    assert {model["name"] for model in running} >= {"plain:latest", "tuned:latest"}
    use = httpx.get(f"{daemon.url}/api/hearth/du", trust_env=False).json()
    names = {tuple(a["models"]) for a in use["artifacts"] if "-on-" in a["target"]}
    assert names == {("again:latest", "tuned:latest")}
    for name in ("plain", "tuned", "again"):
        httpx.request("DELETE", f"{daemon.url}/api/delete", json={"model": name}, trust_env=False)


def test_an_adapter_of_another_model_is_a_400(
    daemon: DaemonProcess, files: tuple[pathlib.Path, pathlib.Path]
) -> None:
    _, adapter = files
    given = {"lora.gguf": upload(daemon, adapter)}
    refused = post(daemon, "/api/create", model="x", **{"from": "ember"}, adapters=given)
    assert (refused.status_code, "adapter tensor" in refused.json()["error"]) == (400, True)
    lines = f"FROM ember\nADAPTER @{given['lora.gguf']}\nADAPTER @sha256:{'0' * 64}"
    refused = post(daemon, "/api/create", model="x", modelfile=lines)
    assert refused.status_code == 400
    assert "only one adapter" in refused.json()["error"]
