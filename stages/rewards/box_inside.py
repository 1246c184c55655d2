"""The inside of a box: limits itself for good, then runs code that nobody trusts. Started by `box.py`, never imported.

    python -I -S -B -c THIS ROLE PARENT READABLE CALLS REPLIES < JSON

`PARENT` is the process that started this one (0 = a process namespace between them sees to it that both end together).
`READABLE` are paths, joined by ":", that Landlock is to leave readable; empty = a mount namespace around us does that.
`CALLS` and `REPLIES` are open pipes, one line of Python literals each. The roles:

    candidate   runs `program`; reads (args, kwargs), calls `entry_point`, writes (True, value) or (False, error)
    tests       runs `prompt` and `test`, then `check(candidate)`, where each call goes to the candidate by the pipes;
                exit code 0 = passed, 1 = not passed, 2 = the test itself cannot run

The candidate never shares a process with its tests: it sees the arguments of each call and nothing else, and what comes
back are plain values, so it can neither print a verdict, nor leave early with a good one, nor return an object that is
equal to everything. Only the standard library, because nothing else is in the box.
"""

import ast
import ctypes
import json
import os
import resource
import struct
import sys
from typing import Any

CPU_S, MEMORY_BYTES, REPLY_CHARS = 4, 512 * 2**20, 2**20
NOBODY = 65534
PASSED, NOT_PASSED, TEST_UNUSABLE = 0, 1, 2

# What a program has no business with, by number on x86-64: other programs and processes, sockets, shared memory, file
# attributes (Landlock does not guard them), and the parts of the kernel that sandboxes are broken through.
DENIED = {
    "processes": (56, 57, 58, 59, 62, 109, 112, 129, 200, 234, 297, 322, 424, 434, 435, 438),
    "of others": (101, 141, 160, 203, 251, 256, 279, 302, 310, 311, 312, 440),
    "sockets": (41, 53, 425),
    "shared memory": (29, 64, 68, 240, 319, 447),
    "file attributes": (90, 91, 92, 93, 94, 132, 133, 188, 189, 190, 197, 198, 199, 235, 259, 260, 261, 268, 280, 452),
    "mounts": (155, 161, 165, 166, 179, 272, 303, 304, 308, 428, 429, 430, 432, 442, 443),
    "the machine": (103, 163, 167, 169, 170, 172, 173, 175, 176, 246, 313, 320),
    "the kernel": (105, 106, 113, 117, 135, 157, 248, 249, 250, 298, 321, 323),
}
_AUDIT_ARCH_X86_64, _X32 = 0xC000003E, 0x40000000
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050001, 0x80000000  # refuse: EPERM
_LIBC = ctypes.CDLL(None, use_errno=True)


def limit() -> None:
    """No more processes or threads than this one, no file of any size, little time and memory."""
    limits = {
        resource.RLIMIT_NPROC: 1,
        resource.RLIMIT_CPU: CPU_S,
        resource.RLIMIT_AS: MEMORY_BYTES,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 64,
    }
    for name, value in limits.items():
        resource.setrlimit(name, (value, value))


def allow_reading_only(paths: list[str]) -> None:
    """Landlock: of all files only these may be opened, and only for reading; no TCP, no signals to outside."""
    version = _syscall(444, None, 0, 1)
    rights = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules = _syscall(444, struct.pack("<QQQ", rights, 0b11, 0b11)[:size], size, 0)
    for path in paths:
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        may = 0b1101 if os.path.isdir(path) else 0b0101  # execute, read, list
        _syscall(445, rules, 1, struct.pack("<Qi", may, folder), 0)
    _syscall(446, rules, 0)


def refuse_syscalls() -> None:
    """seccomp: everything in DENIED is answered with "not permitted", from here on and for good (x86-64 only)."""
    denied = sorted(number for numbers in DENIED.values() for number in numbers)
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    steps = [(load, 0, 0, 4), (equal, 1, 0, _AUDIT_ARCH_X86_64), (give, 0, 0, _KILL), (load, 0, 0, 0)]
    steps += [(at_least, 0, 1, _X32), (give, 0, 0, _KILL)]
    steps += [(equal, len(denied) - i, 0, number) for i, number in enumerate(denied)]
    steps += [(give, 0, 0, _ALLOW), (give, 0, 0, _REFUSE)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in steps))
    header = struct.pack("<HxxxxxxQ", len(steps), ctypes.addressof(program))
    if _LIBC.prctl(22, 2, header, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


def _syscall(number: int, *args: Any) -> int:
    found = int(_LIBC.syscall(number, *[arg if isinstance(arg, bytes | None) else ctypes.c_long(arg) for arg in args]))
    if found < 0:
        raise OSError(ctypes.get_errno(), f"syscall {number}")
    return found


def confine(parent: int, readable: str) -> None:
    """All of it; raises OSError where the kernel cannot, or where our parent is gone already."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    _LIBC.prctl(1, 9, 0, 0, 0)  # when our parent is killed from here on, so are we
    if parent and os.getppid() != parent:
        raise OSError("no parent")
    limit()
    if _LIBC.prctl(38, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")
    if readable:
        allow_reading_only(readable.split(":"))
    if os.uname().machine == "x86_64":
        refuse_syscalls()
    elif readable:
        raise OSError("the list of system calls is for x86-64")


def literal(value: Any) -> str:
    """Plain values as text that `ast.literal_eval` reads; TypeError for any other."""
    if value is None or isinstance(value, bool | int | str | bytes | complex):
        return repr(value)
    if isinstance(value, float):
        return repr(value).replace("inf", "1e999")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(key)}: {literal(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple | set | frozenset):
        parts = "".join(f"{literal(one)}, " for one in value)
        if isinstance(value, set | frozenset):
            return f"{{{parts}}}" if value else "set()"
        return f"[{parts}]" if isinstance(value, list) else f"({parts})"
    raise TypeError(f"{type(value).__name__} is no plain value")


def play_candidate(task: dict[str, str], calls: Any, replies: Any) -> None:
    """Answers calls until there are no more."""
    names: dict[str, Any] = {"__name__": "candidate"}
    exec(compile(task["program"], "candidate", "exec"), names)
    for line in calls:
        args, kwargs = ast.literal_eval(line)
        try:
            reply = f"(True, {literal(names[task['entry_point']](*args, **kwargs))})"
        except Exception as error:
            reply = literal((False, type(error).__name__))
        print(reply, file=replies)


def play_tests(task: dict[str, str], calls: Any, replies: Any) -> int:
    """Runs the tests; the exit code. Here `calls` are the candidate's answers, and `replies` what it is asked."""

    def candidate(*args: Any, **kwargs: Any) -> Any:
        print(literal((args, kwargs)), file=replies)
        is_value, value = ast.literal_eval(calls.readline(REPLY_CHARS))
        if not is_value:
            raise RuntimeError(value)
        return value

    names: dict[str, Any] = {"__name__": "tests"}
    try:
        exec(compile(task["prompt"], "prompt", "exec"), names)
        names[task["entry_point"]] = candidate
        exec(compile(task["test"], "test", "exec"), names)
        check = names["check"]
    except BaseException:
        return TEST_UNUSABLE
    try:
        check(candidate)
    except BaseException:
        return NOT_PASSED
    return PASSED


def main(role: str, parent: str, readable: str, calls: str, replies: str) -> int | None:
    """Reads the task, gives up every right, plays the role."""
    task = json.loads(sys.stdin.read())
    confine(int(parent), readable)
    play = {"candidate": play_candidate, "tests": play_tests}[role]
    with open(int(calls)) as lines, open(int(replies), "w", buffering=1) as out:  # pipes, not paths
        return play(task, lines, out)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
