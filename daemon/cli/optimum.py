"""`hearth optimum`: makes and removes the exporter's environment, without a daemon.

It is put together beside and renamed, so that one that is there is whole. Packages come through pip,
as it is configured on this machine.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import time

import msgspec

from daemon.cli.client import ClientError
from daemon.cli.terminal import human_bytes
from daemon.config import ConfigError, load_config
from daemon.models.optimum import FACTS_FILE, REQUIREMENTS, environment_folder


class Installed(msgspec.Struct, frozen=True):
    """`bytes` on the disk, `seconds` that it took."""

    requirements: list[str]
    bytes: int
    seconds: float


def manage(action: str) -> int:
    try:
        folder = environment_folder(load_config(os.environ, {}).home)
    except ConfigError as error:
        raise ClientError(str(error)) from error
    found = _read(folder)
    match action:
        case "install":
            found = found or _install(folder)
            print(f"{_described(found)} in {folder}")
        case "remove":
            _remove(folder)
            print("removed" if found else "nothing was installed")
        case _:
            print(f"{_described(found)} in {folder}" if found else "not installed")
    return 0


def _described(found: Installed) -> str:
    what = ", ".join(found.requirements)
    return f"{what}: {human_bytes(found.bytes)}, installed in {found.seconds:.0f} s"


def _read(folder: pathlib.Path) -> Installed | None:
    try:
        return msgspec.json.decode((folder / FACTS_FILE).read_bytes(), type=Installed)
    except (OSError, msgspec.MsgspecError):
        return None


def _install(folder: pathlib.Path) -> Installed:
    staging = folder.with_name(f"{folder.name}.staging-{os.getpid()}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    try:
        _run([sys.executable, "-m", "venv", str(staging)])
        pip = [str(staging / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        for requirements in REQUIREMENTS:
            print(f"installing {', '.join(requirements)}", file=sys.stderr)
            _run([*pip, "--disable-pip-version-check", *requirements])
        named = [name for requirements in REQUIREMENTS for name in requirements]
        found = Installed(named, _size(staging), time.monotonic() - began)
        (staging / FACTS_FILE).write_bytes(msgspec.json.encode(found))
        _remove(folder)
        staging.rename(folder)
    except OSError as error:
        raise ClientError(f"{folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return found


def _run(command: list[str]) -> None:
    """What the program complains about is shown as it is."""
    if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
        raise ClientError(f"{' '.join(command[1:4])} failed; nothing was installed")


def _size(folder: pathlib.Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*"))


def _remove(folder: pathlib.Path) -> None:
    """Renamed first: what is half removed must not look whole."""
    if folder.exists():
        doomed = folder.with_name(f"{folder.name}.staging-0")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)
