"""One daemon for the tests that only look; tests that kill start their own."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from tests.e2e.daemon_process import DaemonProcess
from tests.models.random_gguf import make_gguf


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path_factory.mktemp("hearth") / "home") as process:
        yield process


@pytest.fixture(scope="session")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A llama of a quarter million weights; its words mean nothing and it rarely stops."""
    return make_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf", types="Q4_K_M")


@pytest.fixture(scope="session")
def larger_gguf(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Large enough that converting it takes a second or more."""
    return make_gguf(
        tmp_path_factory.mktemp("gguf") / "larger.gguf",
        types="Q4_K_M",
        blocks=8,
        embedding=1024,
        heads=16,
        kv_heads=4,
        feed_forward=4096,
        vocabulary=8000,
    )
