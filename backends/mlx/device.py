"""The device that MLX computes on: its name, its memory, and what of it is used how.

Nothing is wired (kept from being paged out) unless the weights fill most of the memory: wiring under
a changing load has crashed kernels, and models that nearly fill the memory crawl without it.
"""

from __future__ import annotations

import logging
import platform

import mlx.core as mx

from backends.engine.machine_memory import available_memory_bytes
from backends.types import EngineError

_log = logging.getLogger(__name__)
_GIBIBYTE = 1 << 30
# Of the recommended working set: what freed buffers may keep for the next step.
_CACHE_PART = 16
_WIRED_FROM, _WIRED_MOST = 0.6, 0.65
_WIRED_MARGIN = 4 * _GIBIBYTE


def device_name() -> str:
    return "metal" if mx.default_device() == mx.gpu and platform.system() == "Darwin" else "cpu"


def prepare_device(wanted: str) -> None:
    """Once before a model is loaded; `wanted` is "metal" or "cpu". Raises EngineError("unsupported").

    The CPU build would start a compiler for each fused kernel.
    """
    if wanted not in ("cpu", device_name()):
        raise EngineError("unsupported", f"MLX has no {wanted} here")
    if wanted == "cpu":
        mx.set_default_device(mx.cpu)
        mx.disable_compile()
    recommended = _fact("max_recommended_working_set_size")
    if recommended:
        mx.set_memory_limit(recommended)
        mx.set_cache_limit(recommended // _CACHE_PART)


def available_bytes() -> int:
    """What models may take now."""
    recommended = _fact("max_recommended_working_set_size")
    return max(0, recommended - mx.get_active_memory()) if recommended else available_memory_bytes()


def wire_weights(weights_bytes: int) -> None:
    wired = plan_wired(
        weights_bytes, _fact("memory_size"), _fact("max_recommended_working_set_size")
    )
    if wired:
        mx.set_wired_limit(wired)
        _log.warning("wired %.1f GB: the weights fill most of the memory", wired / 1e9)


def plan_wired(weights_bytes: int, memory_bytes: int, recommended_bytes: int) -> int:
    """Bytes to wire once and for all; 0: none."""
    if not (memory_bytes and recommended_bytes) or weights_bytes <= _WIRED_FROM * memory_bytes:
        return 0
    most = int(_WIRED_MOST * memory_bytes)
    return min(weights_bytes + _WIRED_MARGIN, most, recommended_bytes)


def architecture() -> str:
    """Of the processor or GPU; kernels are made for it."""
    return str(mx.device_info().get("architecture", ""))


def _fact(name: str) -> int:
    """0 where the device does not say, as CPUs."""
    return int(mx.device_info().get(name, 0))
