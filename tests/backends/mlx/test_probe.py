"""The probe really runs MLX, in a child, and says what is missing."""

from __future__ import annotations

import asyncio

import pytest

from backends.mlx import probe
from backends.select import Machine, probe_runtime, select_backend


def test_this_machine_has_mlx():
    facts = asyncio.run(probe_runtime("mlx"))
    assert facts.devices == ("cpu",), facts.reason
    assert facts.version.startswith("0.32")
    machine = Machine(system="Linux", processor="x86_64", runtimes=(facts,))
    choice = select_backend(machine, {}, "mlx")
    assert (choice.backend, choice.target, choice.device) == ("mlx", "mlx", "cpu")


def test_another_mlx_lm_is_not_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.99")
    assert "0.99" in probe.probe().reason


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert probe.probe().reason == "mlx is not installed"
