"""One function per command. Each takes the parsed arguments and returns an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from daemon.cli.client import Client, ClientError
from daemon.cli.terminal import human_bytes, human_time, print_table

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


def run(arguments: argparse.Namespace) -> int:
    """Dispatches; every expected failure becomes one sentence on stderr."""
    try:
        return _COMMANDS[arguments.command](arguments)
    except ClientError as error:
        print(f"Error: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away: say nothing more, not even at interpreter exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def _serve(arguments: argparse.Namespace) -> int:
    from daemon.app import serve_command

    flags = ("host", "home", "models", "artifacts", "backend", "open_lan", "debug")
    return serve_command({name: getattr(arguments, name) for name in flags})


def _run(arguments: argparse.Namespace) -> int:
    from daemon.cli.chat import run_model

    return run_model(arguments)


def _list(arguments: argparse.Namespace) -> int:
    with Client() as client:
        models = client.request("GET", "/api/tags")["models"]
    rows = [
        [m["name"], m["digest"][:12], human_bytes(m["size"]), human_time(m["modified_at"])]
        for m in models
        if m["name"].lower().startswith(arguments.prefix.lower())
    ]
    print_table(["NAME", "ID", "SIZE", "MODIFIED"], rows)
    return 0


def _ps(arguments: argparse.Namespace) -> int:
    with Client() as client:
        models = client.request("GET", "/api/ps")["models"]
    rows = [
        [
            m["name"],
            m["digest"][:12],
            human_bytes(m["size"]),
            _processor(m["size"], m["size_vram"]),
            str(m["context_length"]),
            human_time(m["expires_at"], future=True),
        ]
        for m in models
        if m["name"].lower().startswith(arguments.prefix.lower())
    ]
    print_table(["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"], rows)
    return 0


def _processor(size: int, size_vram: int) -> str:
    if size_vram == 0:
        return "100% CPU"
    if size_vram == size:
        return "100% GPU"
    if size_vram > size or size == 0:
        return "Unknown"
    on_gpu = round(100 * size_vram / size)
    return f"{100 - on_gpu}%/{on_gpu}% CPU/GPU"


def _show(arguments: argparse.Namespace) -> int:
    from daemon.cli.describe import print_model

    with Client() as client:
        body = {"model": arguments.model, "verbose": arguments.verbose}
        answer = client.request("POST", "/api/show", body)
    if arguments.part:
        print(answer.get(arguments.part, ""))
    else:
        print_model(answer, verbose=arguments.verbose)
    return 0


def _copy(arguments: argparse.Namespace) -> int:
    body = {"source": arguments.source, "destination": arguments.destination}
    with Client() as client:
        client.request("POST", "/api/copy", body)
    print(f"copied '{arguments.source}' to '{arguments.destination}'")
    return 0


def _remove(arguments: argparse.Namespace) -> int:
    with Client() as client:
        for model in arguments.models:
            _unload(client, model, must_exist=False)
            client.request("DELETE", "/api/delete", {"model": model})
            print(f"deleted '{model}'")
    return 0


def _stop(arguments: argparse.Namespace) -> int:
    with Client() as client:
        _unload(client, arguments.model, must_exist=True)
    return 0


def _unload(client: Client, model: str, *, must_exist: bool) -> None:
    body = {"model": model, "prompt": "", "keep_alive": 0, "stream": False}
    try:
        client.request("POST", "/api/generate", body)
    except ClientError as error:
        if must_exist:
            raise
        if error.status != 404:
            print(f"Warning: '{model}' could not be unloaded: {error}", file=sys.stderr)


def _create(arguments: argparse.Namespace) -> int:
    from daemon.cli.shelving import create_model

    return create_model(arguments)


def _quantise(arguments: argparse.Namespace) -> int:
    from daemon.cli.shelving import quantise_model

    return quantise_model(arguments)


def _import(arguments: argparse.Namespace) -> int:
    from daemon.cli.shelving import import_file

    return import_file(arguments)


def _pull(arguments: argparse.Namespace) -> int:
    from daemon.cli.transfers import pull_model

    return pull_model(arguments)


def _push(arguments: argparse.Namespace) -> int:
    from daemon.cli.transfers import push_model

    return push_model(arguments)


def _convert(arguments: argparse.Namespace) -> int:
    from daemon.cli.convert import convert_file

    return convert_file(arguments)


def _disk_use(_: argparse.Namespace) -> int:
    from daemon.cli.disks import print_disk_use

    return print_disk_use()


def _adopt(arguments: argparse.Namespace) -> int:
    from daemon.cli.disks import adopt

    return adopt(arguments.path)


def _discover(arguments: argparse.Namespace) -> int:
    from daemon.cli.discover import print_peers

    return print_peers(arguments.timeout, as_json=arguments.json)


def _doctor(arguments: argparse.Namespace) -> int:
    from daemon.cli.doctor import print_diagnosis

    return print_diagnosis(as_json=arguments.json)


def _key(arguments: argparse.Namespace) -> int:
    from daemon.cli.keys import manage_keys

    return manage_keys(arguments)


def _pair(arguments: argparse.Namespace) -> int:
    from daemon.cli.pair import ask_for_key

    return ask_for_key(arguments.name)


def _optimum(arguments: argparse.Namespace) -> int:
    from daemon.cli.optimum import manage

    return manage(arguments.action)


_COMMANDS: dict[str, Callable[[Any], int]] = {
    "serve": _serve,
    "run": _run,
    "list": _list,
    "ls": _list,
    "ps": _ps,
    "show": _show,
    "cp": _copy,
    "rm": _remove,
    "stop": _stop,
    "create": _create,
    "quantize": _quantise,
    "import": _import,
    "optimum": _optimum,
    "pull": _pull,
    "push": _push,
    "convert": _convert,
    "du": _disk_use,
    "adopt": _adopt,
    "discover": _discover,
    "doctor": _doctor,
    "key": _key,
    "pair": _pair,
}
