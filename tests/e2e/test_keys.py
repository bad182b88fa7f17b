"""A daemon that listens on every address, asked over one that is not loopback, by real clients."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest

from daemon.lan.addresses import local_addresses
from tests.e2e.daemon_process import ROOT, DaemonProcess, free_port

OWN = [ip for ip in sorted(local_addresses()) if ":" not in ip and not ip.startswith("127.")]
QUESTION: list[Any] = [{"role": "user", "content": "Why is the sky blue?"}]
WRONG = "hk_" + "x" * 43

pytestmark = pytest.mark.skipif(not OWN, reason="this machine has no address but loopback")


def hearth(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "daemon", *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class Guarded(DaemonProcess):
    """Needs a key in its home before it starts; `away` is how others reach it."""

    def __init__(self, home: pathlib.Path) -> None:
        port = free_port()
        super().__init__(home, HEARTH_HOST=f"0.0.0.0:{port}")
        self.url = f"http://127.0.0.1:{port}"
        self.away = f"http://{OWN[0]}:{port}"
        self.use = hearth(self.environment, "key", "add", "reader")
        self.manage = hearth(self.environment, "key", "add", "owner", "--manage")

    def from_away(self, key: str) -> dict[str, str]:
        """The environment of a command on another machine."""
        return self.environment | {"HEARTH_HOST": self.away, "HEARTH_KEY": key}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with Guarded(tmp_path_factory.mktemp("guarded") / "home") as process:
        yield process


def test_ollamas_client(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_API_KEY", guarded.use)
    with ollama.Client(host=guarded.away, trust_env=False) as client:
        assert [model.model for model in client.list().models] == ["ember:latest"]
        answer = client.chat("ember", QUESTION, options={"temperature": 0, "num_predict": 40})
        assert "blue" in str(answer.message.content).lower()
        with pytest.raises(ollama.ResponseError, match="'reader'") as refused:
            client.delete("ember")
        assert refused.value.status_code == 403
    monkeypatch.setenv("OLLAMA_API_KEY", "ollama")
    with (
        ollama.Client(host=guarded.away, trust_env=False) as client,
        pytest.raises(ollama.ResponseError, match="unauthorized") as refused,
    ):
        client.list()
    assert refused.value.status_code == 401


def test_openais_client(guarded: Guarded) -> None:
    def client(key: str) -> openai.OpenAI:
        inner = openai.DefaultHttpxClient(trust_env=False)
        return openai.OpenAI(base_url=f"{guarded.away}/v1", api_key=key, http_client=inner)

    with client(guarded.use) as known:
        answer = known.chat.completions.create(
            model="ember", messages=QUESTION, temperature=0, max_tokens=40
        )
        assert "blue" in str(answer.choices[0].message.content).lower()
    with client(WRONG) as unknown, pytest.raises(openai.AuthenticationError) as refused:
        unknown.models.list()
    assert refused.value.code == "invalid_api_key"
    assert WRONG not in str(refused.value)


@pytest.mark.parametrize("form", ["api_key", "auth_token"])
def test_anthropics_client(guarded: Guarded, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)

    def client(key: str) -> anthropic.Anthropic:
        inner = anthropic.DefaultHttpxClient(trust_env=False)
        given: dict[str, Any] = {form: key}
        return anthropic.Anthropic(base_url=guarded.away, http_client=inner, **given)

    with client(guarded.use) as known:
        message = known.messages.create(model="ember", messages=QUESTION, max_tokens=5)
        assert message.usage.output_tokens == 5
    with client(WRONG) as unknown, pytest.raises(anthropic.AuthenticationError) as refused:
        unknown.messages.create(model="ember", messages=QUESTION, max_tokens=5)
    assert refused.value.response.json()["error"]["type"] == "authentication_error"


def test_a_url_with_a_password(guarded: Guarded) -> None:
    with httpx.Client(trust_env=False, auth=("anyone", guarded.use)) as client:
        assert client.get(f"{guarded.away}/api/tags").status_code == 200


def test_our_own_command_from_another_machine(guarded: Guarded, tmp_path: pathlib.Path) -> None:
    assert "ember" in hearth(guarded.from_away(guarded.use), "list")
    hearth(guarded.from_away(guarded.manage), "cp", "ember", "second")
    hearth(guarded.from_away(guarded.manage), "rm", "second")
    without = guarded.from_away("") | {"HEARTH_HOME": str(tmp_path)}
    for environment, why in ((without, "wants a key"), (without | {"HEARTH_KEY": WRONG}, "know")):
        refused = subprocess.run(
            [sys.executable, "-m", "daemon", "list"],
            env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert refused.returncode == 1
        assert why in refused.stderr and "hearth key add" in refused.stderr


def test_a_removed_key_is_refused_at_once_whoever_removed_it(guarded: Guarded) -> None:
    def status(key: str) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.get(f"{guarded.away}/api/tags", headers=headers, trust_env=False).status_code

    local = guarded.environment | {"HEARTH_HOST": f"127.0.0.1:{guarded.url.rsplit(':', 1)[1]}"}
    file_only = guarded.environment | {"HEARTH_HOST": "127.0.0.1:1"}
    remote = guarded.from_away(guarded.manage)
    for number, environment in enumerate((local, file_only, remote)):
        key = hearth(environment, "key", "add", f"tv-{number}")
        assert status(key) == 200
        hearth(environment, "key", "remove", f"tv-{number}")
        assert status(key) == 401


def test_the_doctor_says_how_it_is_guarded(guarded: Guarded) -> None:
    said = hearth(guarded.environment, "doctor")
    assert "open to whoever has a key (there are 2) and announced" in said


def test_nothing_of_a_key_is_in_the_log_or_in_the_home(guarded: Guarded) -> None:
    for key in (guarded.use, guarded.manage, WRONG):
        assert key[3:] not in guarded.log
        for path in guarded.home.rglob("*"):
            if path.is_file() and path.stat().st_size < 1 << 20:
                assert key[3:].encode() not in path.read_bytes()


def test_this_machine_needs_no_key(guarded: Guarded) -> None:
    assert httpx.get(f"{guarded.url}/api/tags", trust_env=False).status_code == 200
