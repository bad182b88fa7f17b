"""Where optimum-onnx lives: an environment of its own below the daemon's home, made on demand."""

from __future__ import annotations

import pathlib

from daemon.errors import Invalid

# Torch first and by itself: then the exporter takes this one and brings no other.
REQUIREMENTS = (("torch==2.13.0",), ("optimum-onnx[onnxruntime]==0.1.0",))
FACTS_FILE = "installed.json"


def environment_folder(home: pathlib.Path) -> pathlib.Path:
    return home / "optimum"


def environment(home: pathlib.Path) -> pathlib.Path:
    """Raises Invalid where it is not installed."""
    folder = environment_folder(home)
    if not (folder / FACTS_FILE).is_file():
        raise Invalid(
            "optimum is not installed: run `hearth optimum install` on the daemon's machine, with its "
            "HEARTH_HOME (over a gigabyte, in an environment of its own)"
        )
    return folder
