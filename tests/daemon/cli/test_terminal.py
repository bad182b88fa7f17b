"""What the command line prints: sizes, times, the client's errors and typed parameters."""

from __future__ import annotations

import datetime

import pytest

from daemon.api.parameters import typed_parameters
from daemon.cli.terminal import human_bytes, human_time
from daemon.models.modelfile import ModelfileError


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KB"),
        (15_000, "15 KB"),
        (4_910_000_000, "4.9 GB"),
        (3 * 10**15, "3000 TB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert human_bytes(count) == text


def moment(seconds: float) -> str:
    return (datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)).isoformat()


def test_times() -> None:
    assert human_time(moment(-61)) == "1 minute ago"
    assert human_time(moment(-7300)) == "2 hours ago"
    assert human_time(moment(299.5), future=True) == "4 minutes from now"
    assert human_time(moment(-1), future=True) == "Stopping..."
    assert human_time("2318-01-01T00:00:00+00:00", future=True) == "Forever"


def test_parameters_become_typed() -> None:
    pairs = [("temperature", "0.5"), ("top_k", "7"), ("stop", "a"), ("stop", "b"), ("f16_kv", "x")]
    assert typed_parameters(pairs) == {"temperature": 0.5, "top_k": 7, "stop": ["a", "b"]}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("top_k", "many", "invalid int value [many]"),
        ("top_k", "1_0", "invalid int value [1_0]"),
        ("temperature", "warm", "invalid float value [warm]"),
        ("use_mmap", "yes", "invalid bool value [yes]"),
        ("sparkle", "1", "unknown parameter 'sparkle'"),
    ],
)
def test_parameters_that_are_refused(name: str, text: str, message: str) -> None:
    with pytest.raises(ModelfileError) as caught:
        typed_parameters([(name, text)])
    assert str(caught.value) == message
