"""The second wall: a list of system calls that may pass (seccomp), and file rights (Landlock).

Both bind this process and its children for good and need no privilege. Where the kernel or the
processor knows neither, `filter_calls` and `forbid_files` say so by returning False.
"""

import ctypes
import os
import struct

from inside.namespaces import LIBC, StepError

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
RET_ALLOW, RET_KILL, RET_ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
EPERM, ENOSYS = 1, 38
CLONE_THREAD, AF_UNIX = 0x10000, 1
LOAD, EQUALS, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06  # BPF opcodes: ld abs word, jeq, jset, ret
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data

# machine: (audit architecture, clone, clone3, socketpair, calls that may pass).
# They read and write open files, files under /tmp, memory, time and threads, and end or signal
# their own. Absent: execve, fork, socket, connect, ptrace, process_vm_*, mount, unshare, setns,
# prctl, bpf, keyctl, io_uring_*, memfd_create and shm* (memory that no limit counts), and what
# kernels will add. Numbers: <asm/unistd_64.h> and <asm-generic/unistd.h>, Linux 6.1.
MACHINES = {
    "x86_64": (0xC000003E, 56, 435, 53, (
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22,
        23, 24, 25, 28, 32, 33, 34, 35, 36, 37, 38, 39, 40, 44, 45, 46, 47, 48, 60, 61, 62,
        63, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81, 82, 83, 84, 86, 87, 88, 89, 90, 91, 95,
        96, 97, 98, 99, 100, 102, 104, 107, 108, 110, 111, 115, 118, 120, 121, 124, 127,
        128, 131, 132, 137, 138, 140, 158, 186, 201, 202, 204, 213, 217, 218, 219, 221, 228,
        229, 230, 231, 232, 233, 234, 235, 247, 257, 258, 261, 262, 263, 264, 265, 266, 267,
        268, 269, 270, 271, 273, 280, 281, 285, 290, 291, 292, 293, 295, 296, 302, 309, 316,
        318, 324, 326, 332, 334, 439,
    )),
    "aarch64": (0xC00000B7, 220, 435, 199, (
        17, 19, 20, 21, 22, 23, 24, 25, 29, 32, 34, 35, 36, 37, 38, 43, 44, 45, 46, 47, 48,
        49, 50, 52, 53, 56, 57, 59, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70, 71, 72, 73, 78,
        79, 80, 82, 83, 88, 93, 94, 95, 96, 98, 99, 101, 102, 103, 113, 114, 115, 123, 124,
        128, 129, 131, 132, 134, 135, 136, 137, 139, 141, 148, 150, 153, 155, 156, 158, 160,
        163, 165, 166, 168, 169, 172, 173, 174, 175, 176, 177, 178, 179, 206, 207, 210, 211,
        212, 214, 215, 216, 222, 223, 226, 233, 260, 261, 276, 278, 283, 285, 291, 293, 439,
    )),
}  # fmt: skip


def forbid_privileges() -> None:
    """No program started from here on gains rights; both other functions need this first."""
    if LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise StepError("no_new_privs", ctypes.get_errno())


def filter_calls() -> bool:
    """Lets only listed system calls pass, threads but no new processes; False if unsupported."""
    machine = MACHINES.get(os.uname().machine)
    if machine is None:
        return False
    program = b"".join(_program(*machine))
    code = ctypes.create_string_buffer(program, len(program))
    filled = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))  # struct sock_fprog
    return LIBC.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filled, 0, 0) == 0


def _program(
    architecture: int, clone: int, clone3: int, socketpair: int, passing: tuple[int, ...]
) -> list[bytes]:
    """The filter as BPF instructions: what is not listed fails with EPERM and does not kill."""
    lines = [
        _line(LOAD, ARCHITECTURE),
        _line(EQUALS, architecture, 1, 0),
        _line(RETURN, RET_KILL),  # 32-bit calls on a 64-bit kernel have other numbers
        _line(LOAD, NUMBER),
    ]
    for number in passing:
        lines += [_line(EQUALS, number, 0, 1), _line(RETURN, RET_ALLOW)]
    lines += [_line(EQUALS, clone3, 0, 1), _line(RETURN, RET_ERRNO | ENOSYS)]  # libc tries clone
    lines += [_line(EQUALS, clone, 0, 3), _line(LOAD, FIRST_ARGUMENT)]
    lines += [_line(ANY_BIT, CLONE_THREAD, 0, 1), _line(RETURN, RET_ALLOW)]
    lines += [_line(EQUALS, socketpair, 0, 3), _line(LOAD, FIRST_ARGUMENT)]
    lines += [_line(EQUALS, AF_UNIX, 0, 1), _line(RETURN, RET_ALLOW)]
    return [*lines, _line(RETURN, RET_ERRNO | EPERM)]


def _line(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


# ---- Landlock (Linux 5.13 on; include/uapi/linux/landlock.h)

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
GET_VERSION, PATH_BENEATH = 1, 1
READ = 0b1101  # execute, read a file, list a folder
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # version: how many rights it knows
NETWORK_RIGHTS, SCOPES = 0b11, 0b11  # TCP bind and connect; abstract sockets and signals


def forbid_files() -> bool:
    """Reading everywhere, writing only under /tmp, no TCP; False where Landlock is missing."""
    version = LIBC.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), GET_VERSION)
    if version < 1:
        return False
    every = (1 << FILE_RIGHTS[min(version, 5)]) - 1
    fields = [every, *([NETWORK_RIGHTS] * (version >= 4)), *([SCOPES] * (version >= 6))]
    rules = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = LIBC.syscall(CREATE_RULESET, rules, ctypes.c_size_t(len(rules)), 0)
    if ruleset < 0:
        return False
    for folder, rights in (("/", READ), ("/tmp", every)):
        place = os.open(folder, os.O_PATH)
        LIBC.syscall(ADD_RULE, ruleset, PATH_BENEATH, struct.pack("=Qi", rights, place), 0)
        os.close(place)
    restricted = LIBC.syscall(RESTRICT_SELF, ruleset, 0) == 0
    os.close(ruleset)
    return restricted
