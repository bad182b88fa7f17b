from __future__ import annotations

import os
import pathlib

import pytest

from backends.onnx.nvidia import NvidiaFacts, find_nvidia
from tests.backends.onnx.hosts import OPEN, PROPRIETARY, with_card, with_driver, with_nodes


def test_a_machine_without_one(tmp_path: pathlib.Path):
    assert find_nvidia(with_card(tmp_path, vendor="0x1002")) == NvidiaFacts()


@pytest.mark.parametrize("flavour", [OPEN, PROPRIETARY])
def test_driver_and_name_are_read_from_the_drivers_files(tmp_path: pathlib.Path, flavour: str):
    found = find_nvidia(with_nodes(with_driver(tmp_path, "580.95.05", flavour)))
    assert found == NvidiaFacts(
        is_present=True, names=("NVIDIA GeForce RTX 4070",), driver="580.95.05"
    )


def test_a_card_without_a_driver(tmp_path: pathlib.Path):
    found = find_nvidia(with_card(tmp_path))
    assert found.is_present and found.title == "an NVIDIA GPU"
    assert "driver is not loaded" in found.problem and "install" in found.remedy


def test_a_container_without_the_nodes(tmp_path: pathlib.Path):
    found = find_nvidia(with_driver(tmp_path, "580.1"))
    assert "device nodes" in found.problem and "--gpus all" in found.remedy


def test_a_user_who_may_not(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    root = with_nodes(with_driver(tmp_path, "580.1"))
    monkeypatch.setattr(os, "access", lambda path, mode: "nvidia0" not in str(path))
    found = find_nvidia(root)
    assert found.problem == "this user may not open /dev/nvidia0"
    assert "groups" in found.remedy


@pytest.mark.parametrize("has_node", [True, False])
def test_under_windows(tmp_path: pathlib.Path, has_node: bool):
    library = tmp_path / "usr/lib/wsl/lib/libcuda.so.1"
    library.parent.mkdir(parents=True)
    library.touch()
    if has_node:
        (tmp_path / "dev").mkdir()
        (tmp_path / "dev/dxg").touch()
    found = find_nvidia(tmp_path)
    assert found.is_present
    assert bool(found.problem) is not has_node
