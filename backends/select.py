"""Which backend runs a model on this machine, and the sentence that says why.

`select_backend` is pure; `probe_machine` asks one child per runtime, because a broken runtime can
take its process down. Standard library and msgspec only: the daemon reads this module.
"""

from __future__ import annotations

import asyncio
import importlib.util
import platform
import sys
from collections.abc import Iterator, Mapping

import msgspec

PROBE_SECONDS = 60.0
RUNTIMES = ("mlx", "onnx")
TITLES = {"mlx": "MLX", "onnx": "ONNX Runtime"}
# What an owner may ask for instead of the automatic choice.
WISHES = ("auto", "mlx", "onnx", "onnx-cuda", "onnx-cpu")
_PROCESSORS = {"Linux": ("x86_64", "aarch64"), "Darwin": ("arm64",)}


class Hindrance(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Hardware of this machine that a runtime cannot use: why, and what the owner can do."""

    device: str
    reason: str
    remedy: str = ""

    @property
    def sentence(self) -> str:
        return f"{self.reason}; {self.remedy}" if self.remedy else self.reason


class Accelerator(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A device with memory of its own; sizes in bytes, 0 where its driver does not say."""

    name: str
    driver: str = ""
    total_bytes: int = 0
    free_bytes: int = 0


class RuntimeFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a probe found. `devices`, best first, are those that ran a small graph; none: `reason`.

    `warnings` are sentences about an installation that works but should not stay as it is.
    """

    name: str
    version: str = ""
    devices: tuple[str, ...] = ()
    reason: str = ""
    hindrances: tuple[Hindrance, ...] = ()
    warnings: tuple[str, ...] = ()
    accelerators: tuple[Accelerator, ...] = ()


class Machine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`system` and `processor` as `platform` names them ("Darwin", "arm64"); `release` for people."""

    system: str
    processor: str
    release: str = ""
    runtimes: tuple[RuntimeFacts, ...] = ()

    def alarms(self) -> tuple[str, ...]:
        """What an owner should be told loudly: hardware that is not used, installations at odds."""
        found: list[str] = []
        for facts in self.runtimes:
            found += [hindrance.sentence for hindrance in facts.hindrances]
            found += facts.warnings
        return tuple(found)


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """`backend` and `device` are for `Load`, `target` for the converter; `reason` for people.

    `device_bytes`: all of the device's own memory; 0 where it uses the machine's.
    """

    backend: str
    target: str
    device: str
    reason: str
    device_bytes: int = 0


class NoBackend(Exception):
    """Nothing here can run this model; the message names every reason."""


class _Candidate(msgspec.Struct, frozen=True):
    """A runtime on a device; the device is empty where the runtime could use none."""

    runtime: str
    device: str

    @property
    def target(self) -> str:
        return "mlx" if self.runtime == "mlx" else f"onnx-{self.device}"

    @property
    def title(self) -> str:
        on_cuda = " on CUDA" if self.device == "cuda" else ""
        return TITLES[self.runtime] + on_cuda


def select_backend(machine: Machine, refusals: Mapping[str, str], wanted: str = "auto") -> Choice:
    """MLX on Apple silicon, else ONNX Runtime on CUDA, else on the CPU.

    `refusals` say, by runtime or by target, why a model cannot run there. `wanted` is one of
    `WISHES`, or "scripted", which is never chosen by itself. Raises NoBackend.
    """
    if wanted == "scripted":
        return Choice(
            backend="scripted", target="scripted", device="cpu", reason="asked for by configuration"
        )
    if wanted not in WISHES:
        raise NoBackend(f"there is no backend named {wanted!r}; known are {', '.join(WISHES)}")
    if problem := platform_problem(machine):
        raise NoBackend(problem)
    passed_over: list[str] = []
    for candidate in _candidates(machine, wanted):
        obstacle = _obstacle(candidate, machine, refusals, wanted)
        if not obstacle:
            return _choice(candidate, machine, passed_over)
        passed_over.append(f"{candidate.title}: {obstacle}")
    raise NoBackend("no backend here can run this model (" + "; ".join(passed_over) + ")")


def platform_problem(machine: Machine) -> str:
    """Why this daemon runs no model on such a machine at all; empty where it may."""
    if machine.system == "Windows":
        return "Windows itself is not supported; run Hearth inside WSL2"
    processors = _PROCESSORS.get(machine.system)
    if processors is None:
        return f"{machine.system} is not supported; Linux and macOS are"
    if machine.processor not in processors:
        return (
            f"{machine.system} on {machine.processor} is not supported; on {' and '.join(processors)} "
            "it is"
        )
    return ""


def _candidates(machine: Machine, wanted: str) -> Iterator[_Candidate]:
    """All that could be asked for here, best first. CUDA only where a GPU is, or was asked for."""
    mlx, onnx = _facts(machine, "mlx"), _facts(machine, "onnx")
    yield _Candidate("mlx", mlx.devices[0] if mlx.devices else "")
    has_gpu = "cuda" in onnx.devices or any(one.device == "cuda" for one in onnx.hindrances)
    if has_gpu or wanted == "onnx-cuda":
        yield _Candidate("onnx", "cuda")
    yield _Candidate("onnx", "cpu")


def _facts(machine: Machine, name: str) -> RuntimeFacts:
    for facts in machine.runtimes:
        if facts.name == name:
            return facts
    return RuntimeFacts(name=name, reason="it was not looked for")


def _obstacle(
    candidate: _Candidate, machine: Machine, refusals: Mapping[str, str], wanted: str
) -> str:
    """Why this is not the one; empty when it is."""
    runtime, target = candidate.runtime, candidate.target
    if wanted not in ("auto", runtime, target):
        return f"the configuration asks for {wanted}"
    if runtime == "mlx" and wanted == "auto" and machine.system != "Darwin":
        return "meant for Apple silicon"
    facts = _facts(machine, runtime)
    if candidate.device not in facts.devices:
        return _absence(candidate, facts)
    return refusals.get(target) or refusals.get(runtime, "")


def _absence(candidate: _Candidate, facts: RuntimeFacts) -> str:
    """Why the runtime does not have the device."""
    for hindrance in facts.hindrances:
        if hindrance.device == candidate.device:
            return hindrance.sentence
    if facts.reason:
        return facts.reason
    return "no NVIDIA GPU was found" if candidate.device == "cuda" else "not usable"


def _choice(candidate: _Candidate, machine: Machine, passed_over: list[str]) -> Choice:
    version = _facts(machine, candidate.runtime).version
    reason = f"{TITLES[candidate.runtime]} {version} on {candidate.device}".replace("  ", " ")
    if passed_over:
        reason += f" ({'; '.join(passed_over)})"
    return Choice(
        backend=candidate.runtime,
        target=candidate.target,
        device=candidate.device,
        reason=reason,
        device_bytes=_device_bytes(candidate, machine),
    )


def _device_bytes(candidate: _Candidate, machine: Machine) -> int:
    accelerators = _facts(machine, candidate.runtime).accelerators
    return accelerators[0].total_bytes if candidate.device == "cuda" and accelerators else 0


async def probe_machine() -> Machine:
    """Asks every runtime's child at once; takes a second or two."""
    facts = await asyncio.gather(*(probe_runtime(name) for name in RUNTIMES))
    return Machine(
        system=platform.system(),
        processor=platform.machine(),
        release=_release(),
        runtimes=tuple(facts),
    )


def _release() -> str:
    """What the wheels of the runtimes care about: the version of macOS, or of the C library."""
    if platform.system() == "Darwin":
        return f"macOS {platform.mac_ver()[0]}"
    name, version = platform.libc_ver()
    return f"{name or 'unknown C library'} {version}".strip()


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
    # Runtimes print what they like on standard output; the answer is the last line.
    answer = output.rstrip().rpartition(b"\n")[2]
    try:
        return msgspec.json.decode(answer, type=RuntimeFacts)
    except msgspec.MsgspecError:
        last = errors.decode("utf-8", "replace").strip().rpartition("\n")[2]
        return RuntimeFacts(name=name, reason=f"its probe failed: {last or child.returncode}")
