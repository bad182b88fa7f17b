"""Which backend runs a model on this machine, and the sentence that says why.

`select_backend` is pure; `probe_machine` asks one child per runtime, because a broken runtime can
take its process down. Standard library and msgspec only: the daemon reads this module.
"""

from __future__ import annotations

import asyncio
import importlib.util
import platform
import sys
from collections.abc import Mapping

import msgspec

PROBE_SECONDS = 60.0
RUNTIMES = ("mlx", "onnx")
TITLES = {"mlx": "MLX", "onnx": "ONNX Runtime"}


class RuntimeFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a probe found. `devices`, best first, are those that ran a small graph; none: `reason`."""

    name: str
    version: str = ""
    devices: tuple[str, ...] = ()
    reason: str = ""


class Machine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`system` and `processor` as `platform` names them ("Darwin", "arm64")."""

    system: str
    processor: str
    runtimes: tuple[RuntimeFacts, ...] = ()


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """`backend` and `device` are for `Load`, `target` for the converter; `reason` for people."""

    backend: str
    target: str
    device: str
    reason: str


class NoBackend(Exception):
    """Nothing here can run this model; the message names every reason."""


def select_backend(machine: Machine, refusals: Mapping[str, str], wanted: str = "auto") -> Choice:
    """MLX on Apple silicon, else ONNX Runtime on CUDA, else on the CPU.

    `refusals` are those of the inspection, by runtime. `wanted` is "auto", the name of a runtime, or
    "scripted", which is never chosen by itself. Raises NoBackend.
    """
    if wanted == "scripted":
        return Choice(
            backend="scripted", target="scripted", device="cpu", reason="asked for by configuration"
        )
    if wanted not in ("auto", *RUNTIMES):
        raise NoBackend(f"there is no backend named {wanted!r}; known are {', '.join(RUNTIMES)}")
    passed_over: list[str] = []
    for name in RUNTIMES:
        obstacle = _obstacle(name, machine, refusals, wanted)
        if not obstacle:
            return _choice(name, _facts(machine, name).devices[0], machine, passed_over)
        passed_over.append(f"{TITLES[name]}: {obstacle}")
    raise NoBackend("no backend here can run this model (" + "; ".join(passed_over) + ")")


def _facts(machine: Machine, name: str) -> RuntimeFacts:
    for facts in machine.runtimes:
        if facts.name == name:
            return facts
    return RuntimeFacts(name=name, reason="it was not looked for")


def _obstacle(name: str, machine: Machine, refusals: Mapping[str, str], wanted: str) -> str:
    """Why this runtime is not the one; empty when it is."""
    if wanted not in ("auto", name):
        return f"the configuration asks for {TITLES[wanted]}"
    if name == "mlx" and wanted == "auto" and machine.system != "Darwin":
        return "meant for Apple silicon"
    facts = _facts(machine, name)
    return refusals.get(name, "") if facts.devices else facts.reason or "not usable"


def _choice(name: str, device: str, machine: Machine, passed_over: list[str]) -> Choice:
    target = "mlx" if name == "mlx" else f"onnx-{device}"
    version = _facts(machine, name).version
    reason = f"{TITLES[name]} {version} on {device}".replace("  ", " ")
    if passed_over:
        reason += f" ({'; '.join(passed_over)})"
    return Choice(backend=name, target=target, device=device, reason=reason)


async def probe_machine() -> Machine:
    """Asks every runtime's child at once; takes a second or two."""
    facts = await asyncio.gather(*(probe_runtime(name) for name in RUNTIMES))
    return Machine(system=platform.system(), processor=platform.machine(), runtimes=tuple(facts))


async def probe_runtime(name: str) -> RuntimeFacts:
    """Runs `backends.<name>.probe` in a child; whatever goes wrong there becomes the reason."""
    module = f"backends.{name}.probe"
    if importlib.util.find_spec(f"backends.{name}") is None or not importlib.util.find_spec(module):
        return RuntimeFacts(name=name, reason="this build has no such backend")
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        output, errors = await asyncio.wait_for(child.communicate(), PROBE_SECONDS)
    except TimeoutError:
        child.kill()
        await child.wait()
        return RuntimeFacts(name=name, reason=f"no answer within {PROBE_SECONDS:g} s")
    try:
        return msgspec.json.decode(output, type=RuntimeFacts)
    except msgspec.MsgspecError:
        last = errors.decode("utf-8", "replace").strip().rpartition("\n")[2]
        return RuntimeFacts(name=name, reason=f"its probe failed: {last or child.returncode}")
