"""A filter of system calls: no network, no other programs, no other processes, no kernel changes.

A denied call fails with EPERM, so that a library that probes goes on. Numbers are Linux's, for
x86-64 and aarch64; on other machines there is no filter. Threads that exist already are filtered too.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

from converters.confinement.kernel import set_no_new_privileges, system_call

# Name: number on x86-64, on aarch64 (None where it does not exist).
_DENIED: dict[str, tuple[int | None, int]] = {
    "socket": (41, 198), "connect": (42, 203), "accept": (43, 202), "accept4": (288, 242),
    "bind": (49, 200), "listen": (50, 201), "sendto": (44, 206), "sendmsg": (46, 211),
    "sendmmsg": (307, 269), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "execve": (59, 221), "execveat": (322, 281),
    "kill": (62, 129), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "setns": (308, 268), "unshare": (272, 97), "bpf": (321, 280),
    "perf_event_open": (298, 241), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "userfaultfd": (323, 282),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "personality": (135, 92),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "sethostname": (170, 161),
    "setdomainname": (171, 162), "acct": (163, 89), "fanotify_init": (300, 262),
    "mknodat": (259, 33), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "mount_setattr": (442, 442),
}  # fmt: skip
_DENIED_ON_X86 = {"fork": 57, "vfork": 58, "mknod": 133, "iopl": 172, "ioperm": 173}
# Machine: column above, the kernel's mark of the architecture, and three numbers used by name.
_MACHINES = {
    "x86_64": (0, 0xC000003E, {"seccomp": 317, "clone": 56, "tgkill": 234}),
    "aarch64": (1, 0xC00000B7, {"seccomp": 277, "clone": 220, "tgkill": 131}),
}
_CLONE3 = 435
_X32_BIT = 0x40000000
_CLONE_THREAD = 0x00010000

# Classic BPF: load a word of the call's description, compare, return.
_LOAD, _EQUAL, _AT_LEAST, _HAS_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
_ALLOW, _KILL_PROCESS, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000
_SET_FILTER, _ALL_THREADS = 1, 1


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def forbid_new_privileges() -> str:
    """Set-user-id programs give nothing any more. Raises OSError."""
    set_no_new_privileges()
    return "no_new_privs"


def filter_system_calls() -> str:
    """Raises OSError where the kernel or the machine has no filter."""
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        raise OSError(errno.ENOSYS, f"no table for {platform.machine()}")
    column, architecture, numbers = machine
    code = b"".join(_program(column, architecture, numbers))
    held = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.addressof(held))
    system_call(
        numbers["seccomp"],
        ctypes.c_uint(_SET_FILTER),
        ctypes.c_uint(_ALL_THREADS),
        ctypes.byref(program),
    )
    return "seccomp"


def _program(column: int, architecture: int, numbers: dict[str, int]) -> list[bytes]:
    """Instructions. A comparison skips so many instructions when it holds, so many when not."""
    code = [
        _step(_LOAD, _ARCHITECTURE_AT),
        _step(_EQUAL, architecture, 1, 0),
        _step(_RETURN, _KILL_PROCESS),
        _step(_LOAD, _NUMBER_AT),
    ]
    if column == 0:  # the third calling convention of x86-64 has numbers of its own
        code += [_step(_AT_LEAST, _X32_BIT, 0, 1), _fail(errno.EPERM)]
    denied = [row[column] for row in _DENIED.values()]
    denied += _DENIED_ON_X86.values() if column == 0 else []
    for number in denied:
        if number is not None:
            code += [_step(_EQUAL, number, 0, 1), _fail(errno.EPERM)]
    # The C library falls back to clone, whose flags can be looked at.
    code += [_step(_EQUAL, _CLONE3, 0, 1), _fail(errno.ENOSYS)]
    code += _allow_if(numbers["clone"], _step(_HAS_BITS, _CLONE_THREAD, 1, 0))
    code += _allow_if(numbers["tgkill"], _step(_EQUAL, os.getpid(), 1, 0))
    return [*code, _step(_RETURN, _ALLOW)]


def _allow_if(number: int, condition: bytes) -> list[bytes]:
    """The call `number` is allowed only where the condition on its first argument holds."""
    return [
        _step(_EQUAL, number, 0, 4),
        _step(_LOAD, _FIRST_ARGUMENT_AT),
        condition,
        _fail(errno.EPERM),
        _step(_RETURN, _ALLOW),
    ]


def _fail(number: int) -> bytes:
    return _step(_RETURN, _FAIL | number)


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
