"""What this machine says of an NVIDIA GPU, without any of CUDA's libraries. Standard library only.

The driver's own files tell that a GPU is there even where nothing can use it, which is what an owner
must be told. `root` lets tests lay such files out in a folder.
"""

from __future__ import annotations

import os
import pathlib
import re

import msgspec

_ROOT = pathlib.Path("/")
_NVIDIA_VENDOR = "0x10de"
_DISPLAY_CLASS = "0x03"  # PCI class of display controllers, the compute-only ones included
_DRIVER = re.compile(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)")
_MODEL = re.compile(r"^Model:\s*(.+?)\s*$", re.MULTILINE)
_WSL_DRIVER = "usr/lib/wsl/lib/libcuda.so.1"
_NODE = re.compile(r"nvidia\d+")


class NvidiaFacts(msgspec.Struct, frozen=True, kw_only=True):
    """`names` may be empty though `is_present`. `driver` is the kernel module's version, "" without.

    `problem` says why the GPU cannot be reached by any program, `remedy` what helps.
    """

    is_present: bool = False
    names: tuple[str, ...] = ()
    driver: str = ""
    problem: str = ""
    remedy: str = ""

    @property
    def title(self) -> str:
        return self.names[0] if self.names else "an NVIDIA GPU"


def find_nvidia(root: pathlib.Path = _ROOT) -> NvidiaFacts:
    """Looks at PCI, the driver's files and the device nodes. Never fails."""
    driver, names = _driver(root), _names(root)
    if (root / _WSL_DRIVER).exists():
        return _on_windows(root)
    on_bus = _is_on_bus(root)
    if not (driver or names or on_bus or _nodes(root)):
        return NvidiaFacts()
    problem, remedy = _problem(root, driver)
    return NvidiaFacts(is_present=True, names=names, driver=driver, problem=problem, remedy=remedy)


def _on_windows(root: pathlib.Path) -> NvidiaFacts:
    """Under WSL2 the driver is Windows' own and reached through one node."""
    if (root / "dev/dxg").exists():
        return NvidiaFacts(is_present=True)
    return NvidiaFacts(
        is_present=True,
        problem="Windows gives this Linux no GPU (/dev/dxg is missing)",
        remedy="update WSL with: wsl --update",
    )


def _problem(root: pathlib.Path, driver: str) -> tuple[str, str]:
    if not driver:
        return (
            "NVIDIA's kernel driver is not loaded",
            "install NVIDIA's driver, version 580 or newer, and restart the machine",
        )
    nodes = _nodes(root)
    if not nodes:
        return (
            "its device nodes (/dev/nvidia0 and others) are missing",
            "give them to this container (--gpus all, or --device nvidia.com/gpu=all), or run "
            "nvidia-modprobe -u -c=0",
        )
    closed = [node for node in nodes if not os.access(node, os.R_OK | os.W_OK)]
    if closed:
        name = f"/{closed[0].relative_to(root)}"
        return (
            f"this user may not open {name}",
            "let the service's user use it (usually by the groups video and render)",
        )
    return "", ""


def _driver(root: pathlib.Path) -> str:
    found = _DRIVER.search(_text(root / "proc/driver/nvidia/version"))
    return found.group(1) if found else ""


def _names(root: pathlib.Path) -> tuple[str, ...]:
    files = sorted(root.glob("proc/driver/nvidia/gpus/*/information"))
    found = (_MODEL.search(_text(file)) for file in files)
    return tuple(match.group(1) for match in found if match)


def _nodes(root: pathlib.Path) -> list[pathlib.Path]:
    gpus = [path for path in root.glob("dev/nvidia*") if _NODE.fullmatch(path.name)]
    return sorted(gpus) and [root / "dev/nvidiactl", *sorted(gpus)]


def _is_on_bus(root: pathlib.Path) -> bool:
    for device in root.glob("sys/bus/pci/devices/*"):
        is_display = _text(device / "class").startswith(_DISPLAY_CLASS)
        if is_display and _text(device / "vendor").strip() == _NVIDIA_VENDOR:
            return True
    return False


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
