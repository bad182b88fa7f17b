"""Free memory, read from files like the system's."""

from __future__ import annotations

import pathlib

from daemon.residency.memory import free_bytes

NONE = pathlib.Path("/nowhere")


def meminfo(folder: pathlib.Path, kib: int) -> pathlib.Path:
    path = folder / "meminfo"
    path.write_text(f"MemTotal:  99 kB\nMemAvailable:   {kib} kB\n")
    return path


def test_what_linux_says_is_available(tmp_path: pathlib.Path):
    assert free_bytes(5, proc=meminfo(tmp_path, 1000), cgroup=NONE) == 1000 * 1024


def test_a_control_group_may_allow_less(tmp_path: pathlib.Path):
    (tmp_path / "memory.max").write_text("500000\n")
    (tmp_path / "memory.current").write_text("300000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 50000\n")
    assert free_bytes(5, proc=meminfo(tmp_path, 1000), cgroup=tmp_path) == 250_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(5, proc=meminfo(tmp_path, 1000), cgroup=tmp_path) == 1000 * 1024


def test_without_meminfo_part_of_the_physical_memory_less_what_we_hold():
    assert free_bytes(1 << 62, proc=NONE, cgroup=NONE) == 0
    whole = free_bytes(0, proc=NONE, cgroup=NONE)
    assert whole - free_bytes(1 << 20, proc=NONE, cgroup=NONE) == 1 << 20


def test_this_machine_has_some():
    assert free_bytes(0) > 1 << 20
