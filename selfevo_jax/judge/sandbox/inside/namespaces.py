"""The walls: namespaces of its own, a root folder of its own, a user without rights.

After `isolate` this process and its children see no network but a dead loopback, no process but
their own, and a file system that holds the standard library (read-only) and an empty /tmp.

`unshare`, `mount` and `pivot_root` are called through ctypes, because Python 3.11 has none of them.
Flag values are those of <linux/sched.h>, <linux/mount.h> and <linux/prctl.h>.
"""

import ctypes
import os
import sys

LIBC = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
PRIVATE = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
KEPT = (
    MS_NODEV | MS_NOEXEC | MS_NOSUID | 0x400 | 0x800 | 0x200000
)  # + noatime, nodiratime, relatime
MNT_DETACH = 2
CAPABILITY_VERSION_3 = 0x20080522
NOBODY = 65534
FIRST_USER = 1 << 30  # + process id: users that own nothing, a different one for each cage
INSIDE_USER = 1000


class StepError(Exception):
    """A wall that the platform does not raise: the step, and the system's error number."""

    def __init__(self, step: str, error: int):
        super().__init__(step, error)
        self.step, self.error = step, error


def isolate(work_bytes: int, work_files: int) -> None:
    """Moves this process behind the walls. Raises `StepError` with the first step that fails.

    Root builds with its own rights, because the interpreter may lie in a folder that only root
    can pass, and then becomes a user without a name. Anyone else (and the root of a container that
    knows no other user) needs a user namespace first: it gives them the right to mount.
    """
    shown, users = shown_folders(), _known_users()
    if os.geteuid() == 0 and users > NOBODY:
        _call("namespaces", LIBC.unshare, PRIVATE)
        _build_root(shown, work_bytes, work_files)
        _become(FIRST_USER + os.getpid() if users > 2 * FIRST_USER else NOBODY)
    else:
        user, group = os.geteuid(), os.getegid()
        _call("user namespace", LIBC.unshare, CLONE_NEWUSER | PRIVATE)
        _map_user(user, group)
        _build_root(shown, work_bytes, work_files)
    _drop_capabilities()


def _call(step: str, function, *arguments) -> None:
    if function(*arguments) != 0:
        raise StepError(step, ctypes.get_errno())


# ---- who


def _map_user(user: int, group: int) -> None:
    """The caller's own user and group appear inside as `INSIDE_USER`; nobody else exists."""
    lines = {"setgroups": "deny", "uid_map": f"{INSIDE_USER} {user} 1"}
    for name, line in {**lines, "gid_map": f"{INSIDE_USER} {group} 1"}.items():
        try:
            with open(f"/proc/self/{name}", "w") as file:
                file.write(line)
        except OSError as error:
            raise StepError("user namespace", error.errno or 0) from error


def _known_users() -> int:
    """How many users this user namespace has: all, or few in a container."""
    with open("/proc/self/uid_map") as lines:
        return sum(int(line.split()[2]) for line in lines)


def _become(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def _drop_capabilities() -> None:
    """Gives up every right over this user namespace; nothing later can give them back."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    _call("capabilities", LIBC.capset, header, nothing)


# ---- what is seen


def shown_folders() -> list[str]:
    """Folders that must be readable inside: the standard library and the shared libraries."""
    with open("/proc/self/maps") as maps:
        files = [line.split(maxsplit=5)[5].strip() for line in maps if "/" in line]
    libraries = [os.path.dirname(name) for name in files if ".so" in os.path.basename(name)]
    wanted = {os.path.realpath(name) for name in [*sys.path, *libraries] if os.path.isdir(name)}
    inside_other = {name for name in wanted for other in wanted if name.startswith(other + "/")}
    return sorted(wanted - inside_other)


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    names = [source.encode(), target.encode(), kind and kind.encode()]
    _call(f"mount of {target}", LIBC.mount, *names, ctypes.c_ulong(flags), options.encode())


def _build_root(shown: list[str], work_bytes: int, work_files: int) -> None:
    """Turns an empty tmpfs with `shown` and a bounded /tmp into the only file system there is."""
    quiet = MS_NOSUID | MS_NODEV
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    _mount("cage", "/tmp", "tmpfs", quiet, "size=1m,nr_inodes=1k,mode=755")
    os.mkdir("/tmp/.old")
    _call("pivot_root", LIBC.pivot_root, b"/tmp", b"/tmp/.old")
    os.chdir("/")
    for folder in shown:
        _show(folder)
    _link_library_names()
    os.mkdir("/tmp")
    options = f"size={work_bytes},nr_inodes={work_files + 1},mode=1777"
    _mount("work", "/tmp", "tmpfs", quiet | MS_NOEXEC, options)
    _call("leaving the old root", LIBC.umount2, b"/.old", MNT_DETACH)
    os.rmdir("/.old")
    _mount("none", "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | quiet)
    os.chdir("/tmp")


def _show(folder: str) -> None:
    """Binds a folder at its own path, read-only, with its installed packages hidden."""
    os.makedirs(folder, exist_ok=True)
    _mount("/.old" + folder, folder, None, MS_BIND | MS_REC)
    kept = os.statvfs(folder).f_flag & KEPT
    _mount("none", folder, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | kept)
    for name in _package_folders(folder):
        _mount("hidden", name, "tmpfs", MS_RDONLY | MS_NOSUID | MS_NODEV, "size=4k,mode=755")


def _package_folders(folder: str) -> list[str]:
    names = ("site-packages", "dist-packages")
    parents = (folder, *(os.path.join(folder, x) for x in os.listdir(folder) if "python" in x))
    found = (os.path.join(parent, name) for parent in parents for name in names)
    return [name for name in found if os.path.isdir(name)]


def _link_library_names() -> None:
    """Repeats /lib -> usr/lib and the like, which the dynamic loader goes through."""
    for name in ("lib", "lib64"):
        if os.path.islink(f"/.old/{name}") and not os.path.lexists(f"/{name}"):
            os.symlink(os.readlink(f"/.old/{name}"), f"/{name}")
