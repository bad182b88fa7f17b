from __future__ import annotations

import ctypes
import pathlib

import numpy as np
import pytest

from backends.onnx import cuda_driver
from backends.onnx.cuda_driver import CudaDriver, DriverError
from tests.backends.onnx.fake_driver import FakeLibrary


def test_it_says_what_the_driver_says():
    library = FakeLibrary(version=12080)
    driver = CudaDriver(library)
    assert driver.cuda_version() == (12, 8)
    assert driver.memory() == (library.free, library.total)
    assert driver.accelerator().name == "NVIDIA GeForce RTX 4070"
    assert (library.depth, library.retained) == (0, 0)


@pytest.mark.parametrize(
    ("codes", "word"),
    [
        ({"cuInit": 100}, "cuInit: the driver sees no GPU"),
        (
            {"cuInit": 803},
            "cuInit: the driver's library and kernel module are of different versions",
        ),
        ({"cuDeviceGet": 4242}, "cuDeviceGet: error 4242"),
        ({"cuMemGetInfo": 2}, "cuMemGetInfo: out of memory"),
        ({"cuCtxPushCurrent": 999}, "cuCtxPushCurrent: the driver gives no reason"),
    ],
)
def test_a_refusal_has_a_word(codes: dict[str, int], word: str):
    library = FakeLibrary(codes=codes)
    with pytest.raises(DriverError) as caught:
        CudaDriver(library).memory()
    assert str(caught.value) == word
    assert (library.depth, library.retained) == (0, 0)


def test_a_missing_library_has_a_remedy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cuda_driver, "LIBRARY", "libcuda-of-nobody.so.1")
    with pytest.raises(DriverError) as caught:
        CudaDriver()
    assert "libcuda-of-nobody.so.1" in str(caught.value)
    assert "--gpus all" in caught.value.remedy


def test_the_real_library_is_called_by_the_right_names(tmp_path: pathlib.Path):
    """The structure that is handed over has the size that cuda.h gives it on 64 bits."""
    assert ctypes.sizeof(cuda_driver._Copy2D) == 128


def test_lines_are_copied_with_their_steps():
    source, target = np.arange(40, dtype=np.uint8).reshape(4, 10), np.full((4, 16), 255, np.uint8)
    CudaDriver(FakeLibrary()).copy(
        source.ctypes.data + 2, target.ctypes.data, 3, lines=4, source_step=10, target_step=16
    )
    assert target[:, :3].tolist() == source[:, 2:5].tolist()
    assert (target[:, 3:] == 255).all()
    CudaDriver(FakeLibrary()).zero(target.ctypes.data, 16)
    assert (target[0] == 0).all() and (target[1, 3:] == 255).all()
