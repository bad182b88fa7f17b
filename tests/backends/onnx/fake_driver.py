"""A libcuda of Python: memory is the process's own, answers are what a test sets."""

from __future__ import annotations

import ctypes
from typing import Any

_GIB = 1 << 30


class FakeLibrary:
    """Every call that is not here fails with an AttributeError, as a missing symbol would."""

    def __init__(self, *, version: int = 13000, codes: dict[str, int] | None = None) -> None:
        self.version = version
        self.codes = codes or {}
        self.total, self.free = 24 * _GIB, 20 * _GIB
        self.depth = 0
        self.retained = 0

    def _code(self, call: str) -> int:
        return self.codes.get(call, 0)

    def cuInit(self, flags: int) -> int:
        return self._code("cuInit")

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        return self._code("cuDeviceGet")

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = self.version
        return self._code("cuDriverGetVersion")

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = b"NVIDIA GeForce RTX 4070"
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:
        self.retained += 1
        context._obj.value = 1
        return 0

    def cuDevicePrimaryCtxRelease_v2(self, device: Any) -> int:
        self.retained -= 1
        return 0

    def cuCtxPushCurrent_v2(self, context: Any) -> int:
        code = self._code("cuCtxPushCurrent")
        self.depth += not code
        return code

    def cuCtxPopCurrent_v2(self, context: Any) -> int:
        self.depth -= 1
        return 0

    def cuCtxSynchronize(self) -> int:
        return 0

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:
        free._obj.value, total._obj.value = self.free, self.total
        return self._code("cuMemGetInfo") if self.depth else 201

    def cuMemsetD8_v2(self, address: Any, value: Any, size: Any) -> int:
        ctypes.memset(address.value, value.value, size.value)
        return 0 if self.depth else 201

    def cuMemcpy2DUnaligned_v2(self, order: Any) -> int:
        order = order._obj
        for line in range(order.height):
            ctypes.memmove(
                order.target_device + line * order.target_pitch,
                order.source_device + line * order.source_pitch,
                order.width,
            )
        return 0 if self.depth else 201

    def cuMemcpyHtoD_v2(self, address: Any, source: Any, size: Any) -> int:
        ctypes.memmove(address.value, source.value, size.value)
        return self._code("cuMemcpyHtoD") if self.depth else 201

    def cuMemcpyDtoH_v2(self, target: Any, source: Any, size: Any) -> int:
        ctypes.memmove(target.value, source.value, size.value)
        return 0 if self.depth else 201
