"""An engine of every backend, on a small artifact, for each test that asks for one."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from backends.engine.contract import Engine
from backends.types import (
    Load,
)
from tests.contract.backends_under_test import BACKENDS, UnderTest
from tests.contract.stepping import CONTEXT, ROWS


@pytest.fixture(params=sorted(BACKENDS), scope="module")
def under_test(request: pytest.FixtureRequest) -> UnderTest:
    return BACKENDS[request.param]


@pytest.fixture(scope="module")
def artifact(under_test: UnderTest, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("artifact")
    under_test.write(folder)
    return folder


@pytest.fixture
def engine(under_test: UnderTest, artifact: pathlib.Path) -> Iterator[Engine]:
    load = Load(
        request_id="load", backend=under_test.backend.name, artifact=str(artifact), rows=ROWS,
        context_length=CONTEXT, threads=1,
    )  # fmt: skip
    engine = under_test.backend.load(load)
    yield engine
    engine.close()
