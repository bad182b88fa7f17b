"""What `hearth doctor` says: the machine, its runtimes, what models would run on, and what to do.

The same report with and without a running daemon, so it is made from the configuration and the
disks only. Blocking; changes nothing.
"""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Iterator

import msgspec

from backends.select import Machine, NoBackend, platform_problem, select_backend
from converters.inspection import inspection_path, read_inspection
from daemon.config import Config, ConfigError, check_listening
from daemon.errors import DaemonError
from daemon.lan.access import read_keys
from daemon.models.artifact_collection import tree_bytes
from daemon.residency.memory import free_bytes, physical_bytes

ANY_KIND = "models"
# With less than this a disk is about to be full for what this daemon does.
LEAST_FREE_BYTES = 1 << 30


class KindChoice(msgspec.Struct, frozen=True, kw_only=True):
    """What models of one kind run on: `backend` and `device`, both empty where nothing runs them.

    `kind` is `ANY_KIND`, or an architecture that was met here and is refused somewhere.
    """

    kind: str
    backend: str
    device: str
    reason: str


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A folder of ours; `free` is bytes on its filesystem. One that is missing is made when needed."""

    role: str
    path: str
    exists: bool
    writable: bool
    free: int


class Listening(msgspec.Struct, frozen=True, kw_only=True):
    """`answers` False: no daemon of ours does. `announced` is the word for TXT `be`, "" for none.

    `keys` counts those that are accepted; 0 where their file is damaged, which is a remedy.
    """

    address: str
    answers: bool
    is_loopback: bool
    is_open: bool
    announced: str
    keys: int


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes in bytes. `remedies` are sentences, most urgent first; none: nothing is wrong."""

    version: str
    machine: Machine
    cores: int
    memory: int
    memory_free: int
    choices: tuple[KindChoice, ...]
    remedies: tuple[str, ...]
    places: tuple[Place, ...]
    artifacts: int
    artifacts_size: int
    listening: Listening

    @property
    def can_run_models(self) -> bool:
        return bool(self.choices[0].backend)


def diagnose(config: Config, machine: Machine, *, version: str, answers: bool) -> Diagnosis:
    """`answers`: whether it is a running daemon that asks about itself."""
    choices = tuple(_choices(config, machine))
    places = tuple(_places(config))
    keys, key_problem = _keys(config)
    folders = [folder for folder in config.artifacts.glob("*/*") if folder.is_dir()]
    return Diagnosis(
        version=version,
        machine=machine,
        cores=os.cpu_count() or 1,
        memory=physical_bytes(),
        memory_free=free_bytes(0),
        choices=choices,
        remedies=(*_remedies(machine, choices[0], places), *key_problem),
        places=places,
        artifacts=len(folders),
        artifacts_size=tree_bytes(config.artifacts),
        listening=Listening(
            address=f"{config.host}:{config.port}",
            answers=answers,
            is_loopback=config.is_loopback,
            is_open=config.open_lan,
            announced="" if config.is_loopback else announced_backend(machine, config.backend),
            keys=keys,
        ),
    )


def _keys(config: Config) -> tuple[int, tuple[str, ...]]:
    """(how many, what is wrong)"""
    try:
        count = len(read_keys(config.home))
        check_listening(config, has_keys=count > 0)
    except DaemonError as error:
        return 0, (error.message,)
    except ConfigError as error:
        return 0, (str(error),)
    return count, ()


def announced_backend(machine: Machine, wanted: str) -> str:
    """The word for what runs most models here, for the network; empty when nothing does."""
    try:
        choice = select_backend(machine, {}, wanted)
    except NoBackend:
        return ""
    return f"ort-{choice.device}" if choice.backend == "onnx" else choice.backend


def _choices(config: Config, machine: Machine) -> Iterator[KindChoice]:
    usual = _choice(ANY_KIND, machine, {}, config.backend)
    yield usual
    seen: set[str] = set()
    for path in sorted(inspection_path(config.home, "*").parent.glob("*.json")):
        inspection = read_inspection(path)
        if inspection is None or not inspection.refusals or inspection.architecture in seen:
            continue
        choice = _choice(inspection.architecture, machine, inspection.refusals, config.backend)
        if (choice.backend, choice.device) != (usual.backend, usual.device):
            seen.add(inspection.architecture)
            yield choice


def _choice(kind: str, machine: Machine, refusals: dict[str, str], wanted: str) -> KindChoice:
    try:
        choice = select_backend(machine, refusals, wanted)
    except NoBackend as error:
        return KindChoice(kind=kind, backend="", device="", reason=str(error))
    return KindChoice(kind=kind, backend=choice.backend, device=choice.device, reason=choice.reason)


def _places(config: Config) -> Iterator[Place]:
    roles = {"state": config.home, "models": config.models, "artifacts": config.artifacts}
    for role, path in roles.items():
        nearest = next(folder for folder in (path, *path.parents) if _exists(folder))
        yield Place(
            role=role,
            path=str(path),
            exists=_exists(path),
            writable=os.access(nearest, os.W_OK | os.X_OK),
            free=_free(nearest),
        )


def _exists(path: pathlib.Path) -> bool:
    """A folder that may not be looked into is no error here."""
    return os.access(path, os.F_OK)


def _free(folder: pathlib.Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def _remedies(machine: Machine, usual: KindChoice, places: tuple[Place, ...]) -> Iterator[str]:
    problem = platform_problem(machine)
    if problem:
        yield problem
    elif not usual.backend:
        yield f"nothing here can run a model: {usual.reason}"
    yield from machine.alarms()
    for place in places:
        if not place.writable:
            yield f"{place.path} ({place.role}) cannot be written by this user"
        elif place.free < LEAST_FREE_BYTES:
            yield f"the disk of {place.path} ({place.role}) is nearly full"
