"""`hearth doctor`: what this machine can run and what is in the way, with or without a daemon."""

from __future__ import annotations

import asyncio
import os
import sys

import msgspec

from backends.select import TITLES, probe_machine
from daemon.cli.client import Client, ClientError
from daemon.cli.terminal import human_bytes, print_table
from daemon.config import ConfigError, load_config
from daemon.diagnosis import ANY_KIND, Diagnosis, Listening, diagnose

EXIT_FAILED = 1


def print_diagnosis(*, as_json: bool) -> int:
    """0 when models can run here, else 1."""
    found = _ask_daemon() or _look_ourselves()
    if as_json:
        print(msgspec.json.encode(found).decode())
    else:
        _print(found)
    return 0 if found.can_run_models else EXIT_FAILED


def _ask_daemon() -> Diagnosis | None:
    """None when none of ours answers on this machine."""
    try:
        with Client() as client:
            answer = client.request("GET", "/api/hearth/doctor")
        return msgspec.convert(answer, Diagnosis)
    except ClientError as error:
        if error.status:
            print(f"Warning: what answers there cannot be asked: {error}", file=sys.stderr)
    except msgspec.ValidationError:
        print("Warning: what answers there is another version", file=sys.stderr)
    return None


def _look_ourselves() -> Diagnosis:
    from daemon.api.system import daemon_version

    try:
        config = load_config(os.environ, {})
    except ConfigError as error:
        raise ClientError(str(error)) from error
    machine = asyncio.run(probe_machine())
    return diagnose(config, machine, version=daemon_version(), answers=False)


def _print(found: Diagnosis) -> None:
    machine = found.machine
    where = f"{machine.system} {machine.processor}, {machine.release}"
    print(f"Hearth {found.version} on {where.rstrip(', ')}")
    free, total = human_bytes(found.memory_free), human_bytes(found.memory)
    print(f"{found.cores} cores, {free} of {total} memory free\n")
    _print_runtimes(found)
    _print_choices(found)
    if found.remedies:
        print("\nTo do:")
        for remedy in found.remedies:
            print(f"  - {remedy}")
    print()
    _print_places(found)
    print(f"\n{_listening_sentence(found.listening)}")


def _print_runtimes(found: Diagnosis) -> None:
    rows = [
        [
            TITLES.get(facts.name, facts.name),
            facts.version,
            " ".join(facts.devices) or "none",
            facts.reason,
        ]
        for facts in found.machine.runtimes
    ]
    print_table(["RUNTIME", "VERSION", "DEVICES", "WHY NOT"], rows)
    for facts in found.machine.runtimes:
        for one in facts.accelerators:
            free, total = human_bytes(one.free_bytes), human_bytes(one.total_bytes)
            driver = f", driver {one.driver}" if one.driver else ""
            print(f"{one.name}{driver}: {free} of {total} free")


def _print_choices(found: Diagnosis) -> None:
    for choice in found.choices:
        kind = "\nModels" if choice.kind == ANY_KIND else choice.kind
        print(f"{kind}: {choice.reason}")


def _print_places(found: Diagnosis) -> None:
    rows = [
        [place.role, place.path, _state(place.exists, place.writable), human_bytes(place.free)]
        for place in found.places
    ]
    print_table(["PLACE", "PATH", "STATE", "FREE"], rows)
    print(f"{found.artifacts} converted models, {human_bytes(found.artifacts_size)}")


def _state(exists: bool, writable: bool) -> str:
    if not writable:
        return "not writable"
    return "ready" if exists else "not made yet"


def _listening_sentence(listening: Listening) -> str:
    if not listening.answers:
        return f"No daemon of this build answers; one would listen on {listening.address}"
    if listening.is_loopback:
        return f"Listening on {listening.address}, for this machine only"
    word = f" as be={listening.announced}" if listening.announced else ""
    return f"Listening on {listening.address}, {_guarded(listening)} and announced{word}"


def _guarded(listening: Listening) -> str:
    if listening.is_open:
        return "open to the network without a key"
    return f"open to whoever has a key (there {_counted(listening.keys)})"


def _counted(keys: int) -> str:
    return "is 1" if keys == 1 else f"are {keys or 'none'}"
