"""Progress lines are few, and the first and last of a phase are always among them."""

from __future__ import annotations

import json

import pytest

from converters import progress


def test_a_burst_is_two_lines(capsys: pytest.CaptureFixture[str]):
    report = progress.Progress()
    report.start("write", 1000)
    for _ in range(1000):
        report.advance(1)
    report.finish()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["done"] for line in lines] == [0, 1000]


def test_a_phase_that_was_not_told_all_ends_complete(capsys: pytest.CaptureFixture[str]):
    report = progress.Progress()
    report.start("write", 1000)
    report.advance(990)
    report.start("sync", 5)
    report.finish()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["phase"], line["done"]) for line in lines] == [
        ("write", 0), ("write", 1000), ("sync", 0), ("sync", 5),
    ]  # fmt: skip


def test_lines_come_at_most_ten_a_second(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    clock = iter(range(10_000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock) * 0.01)
    report = progress.Progress()
    report.start("write", 10_000)
    for _ in range(300):
        report.advance(1)
    count = len(capsys.readouterr().out.splitlines())
    assert 20 <= count <= 61
