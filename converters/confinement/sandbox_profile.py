"""macOS: a sandbox profile for this process. Best effort: the call is old, and has no successor."""

from __future__ import annotations

import ctypes
import logging
import pathlib
from collections.abc import Sequence

log = logging.getLogger("hearth.converters")


def apply(read: Sequence[pathlib.Path], write: Sequence[pathlib.Path]) -> list[str]:
    """["sandbox"], or [] where the system refuses; then the log says why."""
    error = ctypes.c_char_p()
    try:
        library = ctypes.CDLL("/usr/lib/libSystem.dylib")
        profile = make_profile(read, write).encode()
        result = library.sandbox_init(profile, ctypes.c_uint64(0), ctypes.byref(error))
    except (OSError, AttributeError) as reason:
        log.warning("no sandbox here: %s", reason)
        return []
    if result != 0:
        log.warning("no sandbox here: %s", (error.value or b"").decode(errors="replace"))
        return []
    return ["sandbox"]


def make_profile(read: Sequence[pathlib.Path], write: Sequence[pathlib.Path]) -> str:
    """No network, no programs, no processes; reading outside people's folders stays allowed."""
    readable = " ".join(_matching(path) for path in [*read, *write])
    writable = " ".join(_matching(path) for path in [*write, pathlib.Path("/dev/null")])
    return "\n".join((
        "(version 1)",
        "(allow default)",
        "(deny network*)",
        "(deny process-exec*)",
        "(deny process-fork)",
        "(deny signal (target others))",
        '(deny file-read-data (subpath "/Users") (subpath "/private/var/root"))',
        f"(allow file-read-data {readable})",
        "(deny file-write*)",
        f"(allow file-write* {writable})",
    ))  # fmt: skip


def _matching(path: pathlib.Path) -> str:
    """Profiles compare real paths: /tmp is /private/tmp there."""
    real = path.resolve()
    text = str(real).replace("\\", "\\\\").replace('"', '\\"')
    return f'({"subpath" if real.is_dir() else "literal"} "{text}")'
