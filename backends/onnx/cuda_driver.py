"""NVIDIA's driver through its own library: which CUDA it knows, what memory is free, copies on it.

Needs libcuda.so.1, which comes with the driver, and nothing else. Everything works on the first
device that CUDA shows this process, in the context that ONNX Runtime uses too. Errors carry the
driver's own word for them.
"""

from __future__ import annotations

import ctypes
from typing import Any

from backends.select import Accelerator

LIBRARY = "libcuda.so.1"
_NAME_BYTES = 256
_DEVICE_MEMORY = 2  # CU_MEMORYTYPE_DEVICE
# The codes that an owner can do something about; cuda.h has the others.
_REMEDIES = {
    35: "update the driver",
    803: "restart the machine after the driver's update",
}
_WORDS = {
    2: "out of memory",
    35: "the driver is older than this CUDA",
    100: "the driver sees no GPU",
    803: "the driver's library and kernel module are of different versions",
    804: "the installed compatibility libraries do not support this GPU",
    999: "the driver gives no reason",
}


class DriverError(Exception):
    """The driver is missing or said no. `remedy`: what an owner can do, "" where nothing is known."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class _Copy2D(ctypes.Structure):
    """CUDA_MEMCPY2D of cuda.h."""

    _fields_ = [
        ("source_x", ctypes.c_size_t),
        ("source_y", ctypes.c_size_t),
        ("source_kind", ctypes.c_uint),
        ("source_host", ctypes.c_void_p),
        ("source_device", ctypes.c_uint64),
        ("source_array", ctypes.c_void_p),
        ("source_pitch", ctypes.c_size_t),
        ("target_x", ctypes.c_size_t),
        ("target_y", ctypes.c_size_t),
        ("target_kind", ctypes.c_uint),
        ("target_host", ctypes.c_void_p),
        ("target_device", ctypes.c_uint64),
        ("target_array", ctypes.c_void_p),
        ("target_pitch", ctypes.c_size_t),
        ("width", ctypes.c_size_t),
        ("height", ctypes.c_size_t),
    ]


class CudaDriver:
    """Raises DriverError wherever the driver does. Used from one thread."""

    def __init__(self, library: Any = None) -> None:
        """`library`: an opened libcuda, or something that behaves like it."""
        try:
            self._library = library or ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise DriverError(
                f"the driver's library cannot be opened: {error}",
                "install the driver's CUDA library of the same version (libcuda1, or "
                "nvidia-driver-cuda-libs), or start the container with --gpus all",
            ) from error
        self._check("cuInit", self._library.cuInit(0))
        self._device = ctypes.c_int()
        self._check("cuDeviceGet", self._library.cuDeviceGet(ctypes.byref(self._device), 0))

    def _check(self, call: str, code: int) -> None:
        if code:
            word = _WORDS.get(code, f"error {code}")
            raise DriverError(f"{call}: {word}", _REMEDIES.get(code, ""))

    def cuda_version(self) -> tuple[int, int]:
        """The newest CUDA that this driver can run, (13, 0) for instance."""
        version = ctypes.c_int()
        self._check("cuDriverGetVersion", self._library.cuDriverGetVersion(ctypes.byref(version)))
        return version.value // 1000, version.value % 1000 // 10

    def accelerator(self) -> Accelerator:
        name = ctypes.create_string_buffer(_NAME_BYTES)
        code = self._library.cuDeviceGetName(name, _NAME_BYTES, self._device)
        self._check("cuDeviceGetName", code)
        free, total = self.memory()
        return Accelerator(
            name=name.value.decode("utf-8", "replace"), total_bytes=total, free_bytes=free
        )

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of the device."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        with _Current(self):
            code = self._library.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
        self._check("cuMemGetInfo", code)
        return free.value, total.value

    def zero(self, address: int, size: int) -> None:
        """Sets `size` bytes from the device address on to 0, and waits for it."""
        with _Current(self):
            code = self._library.cuMemsetD8_v2(
                ctypes.c_uint64(address), ctypes.c_ubyte(0), ctypes.c_size_t(size)
            )
            self._check("cuMemsetD8", code)
            self._check("cuCtxSynchronize", self._library.cuCtxSynchronize())

    def copy(
        self,
        source: int,
        target: int,
        width: int,
        *,
        lines: int,
        source_step: int,
        target_step: int,
    ) -> None:
        """`lines` pieces of `width` bytes, each a step behind the last; waits for it."""
        order = _Copy2D(
            source_kind=_DEVICE_MEMORY,
            source_device=source,
            source_pitch=source_step,
            target_kind=_DEVICE_MEMORY,
            target_device=target,
            target_pitch=target_step,
            width=width,
            height=lines,
        )
        with _Current(self):
            # The aligned form refuses steps beyond a device's limit, this one only gets slower.
            code = self._library.cuMemcpy2DUnaligned_v2(ctypes.byref(order))
            self._check("cuMemcpy2DUnaligned", code)
            self._check("cuCtxSynchronize", self._library.cuCtxSynchronize())

    def read(self, address: int, target: int, size: int) -> None:
        """From the device to the host's memory at `target`."""
        with _Current(self):
            code = self._library.cuMemcpyDtoH_v2(
                ctypes.c_void_p(target), ctypes.c_uint64(address), ctypes.c_size_t(size)
            )
            self._check("cuMemcpyDtoH", code)

    def write(self, address: int, source: int, size: int) -> None:
        """From the host's memory at `source` to the device, and waits for it.

        NOTE: the call alone returns once pageable memory is staged, before it has arrived, and
        the runtime's own stream does not wait for the one that it arrives on.
        """
        with _Current(self):
            code = self._library.cuMemcpyHtoD_v2(
                ctypes.c_uint64(address), ctypes.c_void_p(source), ctypes.c_size_t(size)
            )
            self._check("cuMemcpyHtoD", code)
            self._check("cuCtxSynchronize", self._library.cuCtxSynchronize())


class _Current:
    """The device's primary context, which runtimes share, made current for a few calls."""

    def __init__(self, driver: CudaDriver) -> None:
        self._driver = driver
        self._library, self._device = driver._library, driver._device

    def __enter__(self) -> None:
        context = ctypes.c_void_p()
        code = self._library.cuDevicePrimaryCtxRetain(ctypes.byref(context), self._device)
        self._driver._check("cuDevicePrimaryCtxRetain", code)
        try:
            self._driver._check("cuCtxPushCurrent", self._library.cuCtxPushCurrent_v2(context))
        except DriverError:
            self._library.cuDevicePrimaryCtxRelease_v2(self._device)
            raise

    def __exit__(self, *_: object) -> None:
        self._library.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
        self._library.cuDevicePrimaryCtxRelease_v2(self._device)
