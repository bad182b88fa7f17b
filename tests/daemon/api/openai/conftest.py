"""One daemon and one official client for each test."""

from __future__ import annotations

import pathlib
from collections.abc import AsyncIterator

import openai
import pytest

from tests.daemon.api.openai.rigs import openai_rig
from tests.daemon.api.rig import Rig


@pytest.fixture
async def both(tmp_path: pathlib.Path) -> AsyncIterator[tuple[Rig, openai.AsyncOpenAI]]:
    async with openai_rig(tmp_path) as both:
        yield both


@pytest.fixture
def rig(both: tuple[Rig, openai.AsyncOpenAI]) -> Rig:
    return both[0]


@pytest.fixture
def client(both: tuple[Rig, openai.AsyncOpenAI]) -> openai.AsyncOpenAI:
    return both[1]
