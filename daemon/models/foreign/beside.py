"""Which of the projectors in a folder belong to which weights there: by their file names. Pure.

Beside several models a projector that names another one is none of this one's; one without a name
serves them all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from daemon.models.foreign.scan import FoundFile

_WORD = re.compile(r"[a-z0-9]+")
# What says nothing of the model: the role, and types of numbers.
_COMMON = frozenset({"mmproj", "model", "gguf", "f16", "bf16", "f32", "fp16", "fp32"})


def projectors_for(weights: FoundFile, files: Iterable[FoundFile]) -> tuple[FoundFile, ...]:
    """The one that shares most of the weights' name first."""
    beside = [file for file in files if file.folder == weights.folder]
    is_alone = sum(file.role == "weights" for file in beside) < 2
    words = _words(weights)
    fits = [(_fit(_words(file), words), file) for file in beside if file.role == "projector"]
    ordered = sorted(fits, key=lambda each: -each[0])
    return tuple(file for fit, file in ordered if fit >= 0 or is_alone)


def _words(file: FoundFile) -> frozenset[str]:
    return frozenset(_WORD.findall(file.path.name.lower())) - _COMMON


def _fit(projector: frozenset[str], weights: frozenset[str]) -> int:
    """Words in common less those that only the projector has; types such as `q8_0` are few."""
    return 2 * len(projector & weights) - len(projector)
