"""The system calls that no program under test needs, refused by a seccomp filter in both real tiers.

Most fail with EPERM: tracing and reading other processes, namespaces and mounts, sockets (pairs are allowed: asyncio
wants one), keys, io_uring, eBPF, System V memory, priorities and limits of others. clone3 fails with ENOSYS, since
its flags can't be read here; libraries then fall back to clone, whose flags can. A call in another architecture's
convention kills the program.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from collections.abc import Sequence

from vibethinker.verification import linux

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # of classic BPF
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_REFUSAL = _REFUSE | errno.EPERM
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, (16, 24)  # offsets in struct seccomp_data, little endian
_NEW_NAMESPACES = 0x7E020080  # every CLONE_NEW… flag

# (x86-64, AArch64); None where there is none.
REFUSED: dict[str, tuple[int | None, int | None]] = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "process_madvise": (440, 440),
    "move_pages": (279, 239), "migrate_pages": (256, 238), "perf_event_open": (298, 241), "bpf": (321, 280),
    "userfaultfd": (323, 282), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262), "memfd_secret": (447, 447), "socket": (41, 198), "shmget": (29, 194),
    "shmat": (30, 196), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
    "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119), "sched_setaffinity": (203, 122), "sched_setattr": (314, 274),
    "personality": (135, 92), "kexec_load": (246, 104), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "swapon": (167, 224), "reboot": (169, 142), "quotactl": (179, 60),
    "acct": (163, 89), "settimeofday": (164, 170), "clock_settime": (227, 112), "syslog": (103, 116),
    "modify_ldt": (154, None), "iopl": (172, None), "ioperm": (173, None), "bind": (49, 200),
    "listen": (50, 201), "accept": (43, 202), "accept4": (288, 242), "connect": (42, 203), "shmctl": (31, 195),
    "shmdt": (67, 197), "semctl": (66, 191), "semop": (65, 193), "semtimedop": (220, 192), "msgctl": (71, 187),
    "msgsnd": (69, 189), "msgrcv": (70, 188), "memfd_create": (319, 279), "sync": (162, 81),
    "syncfs": (306, 267), "kexec_file_load": (320, 294), "swapoff": (168, 225), "quotactl_fd": (443, 443),
    "adjtimex": (159, 171), "clock_adjtime": (305, 266), "sethostname": (170, 161), "setdomainname": (171, 162),
    "open_tree_attr": (467, 467),
}  # fmt: skip
# Also refused where files are the host's: Landlock doesn't mediate them.
METADATA: dict[str, tuple[int | None, int | None]] = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None),
    "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5),
    "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16), "removexattrat": (466, 466),
}  # fmt: skip
# Also refused where nothing else keeps a program from signalling the processes of its user.
SIGNALS: dict[str, tuple[int, int]] = {
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424),
}  # fmt: skip
_CLONE, _CLONE3, _PRLIMIT, _SOCKETPAIR = (56, 220), (435, 435), (302, 261), (53, 199)
_FCNTL, _IOCTL = (72, 25), (16, 29)
# Who gets a signal when a descriptor is ready, and which: another way to send one.
_FCNTL_OWNERS, _IOCTL_OWNERS = (8, 10, 15), (0x8901, 0x8902)
_STREAM, _KIND_OF_SOCKET = 1, 0xF
_AND = 0x54
_X32 = 0x40000000  # x86-64's second convention numbers its calls from here
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


Line = tuple[int, int, int, int]


def program(signals: bool = True, metadata: bool = True) -> bytes:
    """The filter, instructions of 8 bytes.

    Args:
        signals: whether the program may send any.
        metadata: whether it may change modes, owners, times and attributes of files.

    Raises:
        OSError: no filter is known for this processor.
    """
    if platform.machine() not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no seccomp filter for {platform.machine()}")
    column, architecture = _ARCHITECTURES[platform.machine()]
    lines: list[Line] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if column == 0:
        lines += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    for numbers in {**REFUSED, **({} if signals else SIGNALS), **({} if metadata else METADATA)}.values():
        if (number := numbers[column]) is not None:
            lines += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSAL)]
    lines += [(_EQUAL, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, _REFUSE | errno.ENOSYS)]
    lines += _if_call(_CLONE[column], [(_LOAD, 0, 0, _ARGUMENTS[0]), (_ANY_BIT, 0, 1, _NEW_NAMESPACES)])
    # Limits of oneself only.
    lines += _if_call(_PRLIMIT[column], [(_LOAD, 0, 0, _ARGUMENTS[0]), (_EQUAL, 1, 0, 0)])
    # A pair that takes addresses could send to any socket of the machine.
    kind = [(_LOAD, 0, 0, _ARGUMENTS[1]), (_AND, 0, 0, _KIND_OF_SOCKET), (_EQUAL, 1, 0, _STREAM)]
    lines += _if_call(_SOCKETPAIR[column], kind)
    for call, refused in ((_FCNTL, _FCNTL_OWNERS), (_IOCTL, _IOCTL_OWNERS)):
        last = len(refused) - 1
        tests = [(_EQUAL, last - n, n == last, value) for n, value in enumerate(refused)]
        lines += _if_call(call[column], [(_LOAD, 0, 0, _ARGUMENTS[1]), *tests])
    lines.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def _if_call(number: int, tests: Sequence[Line]) -> list[Line]:
    """Refuse this call where the tests fall through to their end, else allow it; other calls go on behind."""
    return [(_EQUAL, 0, len(tests) + 2, number), *tests, (_RETURN, 0, 0, _REFUSAL), (_RETURN, 0, 0, _ALLOW)]


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def install(instructions: bytes) -> None:
    """Apply the filter to this process and what it starts, for good.

    Raises:
        OSError: the kernel refuses.
    """
    linux.set_seccomp_filter(ctypes.byref(_Filter(len(instructions) // 8, instructions)))
