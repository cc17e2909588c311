"""Python imports this at its start where the folder is in PYTHONPATH: no internet socket opens here or in a child.

Python's own calls are refused by an audit hook, those of libraries by the kernel (seccomp, Linux only), which ends
the process. Each attempt is a line in the file `OFFLINE_LOG`, with the stack that led to it; so is each child.
"""

import atexit
import ctypes
import faulthandler
import os
import platform
import signal
import socket
import sys
import time
import traceback
from typing import Any

LOG = os.open(os.environ["OFFLINE_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
INTERNET = (socket.AF_INET, socket.AF_INET6)
NAMES = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo")
CHILDREN = ("os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.exec", "subprocess.Popen")
SYSTEM_CALL = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}  # AUDIT_ARCH and the number of socket()


def told(line: str) -> None:
    os.write(LOG, f"{line}\n".encode())


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event in CHILDREN:
        told(f"child: {event} {arguments[:2]!r}")
    opened = event == "socket.__new__" and arguments[1] in INTERNET
    if opened or event in NAMES:
        stack = traceback.extract_stack()
        # While it is imported, urllib3 asks by binding to ::1 whether there is IPv6: refused as well, but no report.
        probe = any(frame.name == "_has_ipv6" and "urllib3" in frame.filename for frame in stack)
        lines = "" if probe else "\n" + "".join(traceback.format_list(stack))
        told(f"{'probe' if probe else 'network'}: {event} {arguments[1:]!r}{lines}")
        raise PermissionError(f"{event} is refused here")


def refuse_in_kernel() -> bool:
    """Makes socket(AF_INET or AF_INET6) a trap for this process and all its children. Whether that can be done."""
    if sys.platform != "linux" or platform.machine() not in SYSTEM_CALL:
        return False
    arch, number = SYSTEM_CALL[platform.machine()]
    load, equal, end = 0x20, 0x15, 0x06
    allow, trap = 0x7FFF0000, 0x00030000

    class Instruction(ctypes.Structure):
        _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.POINTER(Instruction)))

    rows = [
        (load, 0, 0, 4),  # the architecture of the call
        (equal, 0, 6, arch),
        (load, 0, 0, 0),  # its number
        (equal, 0, 4, number),
        (load, 0, 0, 16),  # its first argument
        (equal, 1, 0, socket.AF_INET),
        (equal, 0, 1, socket.AF_INET6),
        (end, 0, 0, trap),
        (end, 0, 0, allow),
    ]
    code = (Instruction * len(rows))(*[Instruction(*row) for row in rows])
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    no_new_privileges, seccomp, by_filter = 38, 22, 2
    if prctl(no_new_privileges, 1, 0, 0, 0):
        return False
    return not prctl(seccomp, by_filter, ctypes.byref(Program(len(rows), code)), 0, 0)


sys.addaudithook(hook)
if refuse_in_kernel():
    faulthandler.register(signal.SIGSYS, file=LOG, chain=True)
    told("guard: audit hook and kernel")
else:
    told("guard: audit hook")
# For reports that are sent a while after the work.
atexit.register(time.sleep, float(os.environ.get("OFFLINE_LINGER_S", "0")))
