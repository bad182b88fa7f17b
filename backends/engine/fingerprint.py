"""What must be the same for numbers computed earlier to be those that would be computed now."""

from __future__ import annotations

import hashlib
import json
import pathlib
import platform
from collections.abc import Sequence

from backends.types import Load
from converters.artifact import Artifact

_CPU = pathlib.Path("/proc/cpuinfo")


def runtime_fingerprint(
    load: Load, artifact: Artifact, context_length: int, runtime: Sequence[object]
) -> str:
    """32 hex digits over artifact, adapters, rotations of that context, runtime and processor."""
    # An adapter's folder is named by its own digest and that of what it was made over.
    adapters = ["/".join(pathlib.Path(path).parts[-2:]) for path in load.adapters]
    rotations = [
        (name, table.is_long(context_length)) for name, table in sorted(artifact.rope.items())
    ]
    facts = [
        artifact.source, artifact.variant, artifact.format, artifact.converter, adapters,
        rotations, load.backend, load.device, list(runtime),
        platform.system(), platform.machine(), _cpu_name(),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _cpu_name() -> str:
    """Kernels are chosen by what the processor can do."""
    try:
        lines = _CPU.read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    return "\n".join(wanted[:2])
