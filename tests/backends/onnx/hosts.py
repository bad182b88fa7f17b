"""Folders that look like the parts of machines that tell of an NVIDIA GPU."""

from __future__ import annotations

import pathlib

VERSION = """\
NVRM version: NVIDIA UNIX {flavour}  {driver}  Release Build  (dvs-builder@host)  Thu Jan 1 2026
GCC version:  gcc version 12.2.0
"""
PROPRIETARY = "x86_64 Kernel Module"
OPEN = "Open Kernel Module for x86_64"


def with_driver(root: pathlib.Path, driver: str, flavour: str = OPEN) -> pathlib.Path:
    folder = root / "proc/driver/nvidia"
    gpu = folder / "gpus/0000:01:00.0"
    gpu.mkdir(parents=True)
    (folder / "version").write_text(VERSION.format(flavour=flavour, driver=driver))
    (gpu / "information").write_text("Model: \t\t NVIDIA GeForce RTX 4070\nIRQ:   \t\t 131\n")
    return root


def with_nodes(root: pathlib.Path, mode: int = 0o666) -> pathlib.Path:
    (root / "dev").mkdir(parents=True, exist_ok=True)
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm", "nvidia-modeset"):
        node = root / "dev" / name
        node.touch()
        node.chmod(mode)
    return root


def with_card(root: pathlib.Path, vendor: str = "0x10de") -> pathlib.Path:
    card = root / "sys/bus/pci/devices/0000:01:00.0"
    card.mkdir(parents=True)
    (card / "class").write_text("0x030000\n")
    (card / "vendor").write_text(f"{vendor}\n")
    return root
