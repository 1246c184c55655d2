"""What a box must withstand: a program that tries to break out of it, run inside one by `box.py` before it is used.

`attack(targets)` names the attacks that worked. It knows a file of ours (`secret`), our process (`pid`) and a port that
we listen at (`port`). Never imported by us; only the standard library, because nothing else is in the box.
"""

import collections
import ctypes
import decimal
import os
import resource
import socket
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE = 0x4206  # unlike PTRACE_ATTACH it does not stop us, where it works


def read_files(targets: dict[str, Any]) -> bool:
    return any(map(can_read, (targets["secret"], "/etc/passwd", "/etc/shadow", f"/proc/{targets['pid']}/environ")))


def read_through_a_symlink(targets: dict[str, Any]) -> bool:
    for folder in ("/tmp", "/dev/shm", "."):
        link = os.path.join(folder, f"attack-{targets['port']}")
        try:
            os.symlink(targets["secret"], link)
            worked = can_read(link)
            os.remove(link)
        except OSError:
            continue
        return worked
    return False


def list_folders(targets: dict[str, Any]) -> bool:
    return bool(os.listdir(os.path.dirname(targets["secret"])))


def write_files(targets: dict[str, Any]) -> bool:
    name = f"attack-{targets['port']}"
    new = (f"/tmp/{name}", f"/dev/shm/{name}", f"/var/tmp/{name}", name)
    return any(map(can_write, (targets["secret"], os.__file__))) or any(map(can_create, new))


def change_a_mode(targets: dict[str, Any]) -> bool:
    os.chmod(targets["secret"], 0o777)
    return True


def see_our_environment(targets: dict[str, Any]) -> bool:
    return bool({"HOME", "PATH", "USER"} & set(os.environ))


def connect_by_tcp(targets: dict[str, Any]) -> bool:
    socket.create_connection(("127.0.0.1", targets["port"]), timeout=1)
    return True


def send_by_udp_abroad(targets: dict[str, Any]) -> bool:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 9)) == 1


def start_processes(targets: dict[str, Any]) -> bool:
    for _ in range(200):
        if os.fork() == 0:
            os._exit(0)
    return True


def signal_us(targets: dict[str, Any]) -> bool:
    os.kill(targets["pid"], 0)
    return True


def trace_us(targets: dict[str, Any]) -> bool:
    return LIBC.ptrace(PTRACE_SEIZE, targets["pid"], 0, 0) == 0


def take_much_memory(targets: dict[str, Any]) -> bool:
    return len(bytearray(4 * 2**30)) > 0


def have_no_limits(targets: dict[str, Any]) -> bool:
    wanted = (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC)
    return any(resource.getrlimit(name)[1] == resource.RLIM_INFINITY for name in wanted)


def raise_a_limit(targets: dict[str, Any]) -> bool:
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return True


def be_root(targets: dict[str, Any]) -> bool:
    os.setuid(0)
    return True


ATTACKS = (
    *(read_files, read_through_a_symlink, list_folders, write_files, change_a_mode, see_our_environment),
    *(connect_by_tcp, send_by_udp_abroad, start_processes, signal_us, trace_us),
    *(take_much_memory, have_no_limits, raise_a_limit, be_root),
)


def can_read(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return bool(file.read(1))
    except OSError:
        return False


def can_write(path: str) -> bool:
    try:
        with open(path, "ab"):
            return True
    except OSError:
        return False


def can_create(path: str) -> bool:
    try:
        with open(path, "xb"):
            pass
        os.remove(path)
    except OSError:
        return False
    return True


def attack(targets: dict[str, Any]) -> list[str]:
    """Names of the attacks that worked; an honest program (counters, decimals) runs besides."""
    assert collections.Counter("aa")["a"] * decimal.Decimal("0.5") == 1
    return [one.__name__ for one in ATTACKS if works(one, targets)]


def works(one: Any, targets: dict[str, Any]) -> bool:
    try:
        return bool(one(targets))
    except (OSError, MemoryError, ValueError):
        return False
