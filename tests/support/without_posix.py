"""Stands in for Windows: takes what only POSIX systems have away from whatever is imported after `remove_posix()`.

Other packages are imported before, since they have branches of their own for Windows, which cannot be taken here.
"""

import importlib.abc
import os
import signal
import sys

MODULES = {"fcntl", "grp", "posix_ipc", "pty", "pwd", "resource", "syslog", "termios", "tty"}
"""Modules that Python lacks on Windows."""
_OS_NAMES = """
O_ASYNC O_CLOEXEC O_DIRECT O_DIRECTORY O_DSYNC O_NOATIME O_NOCTTY O_NOFOLLOW O_NONBLOCK O_PATH O_SYNC O_TMPFILE
WNOHANG chown chroot confstr fchdir fchown fork forkpty geteuid getegid getgid getgroups getloadavg getpgid getpgrp
getpriority getresuid getsid getuid initgroups killpg lchown lockf mkfifo mknod nice openpty pathconf posix_fadvise
posix_fallocate posix_spawn pread preadv pwrite pwritev readv register_at_fork sched_getaffinity sched_setaffinity
sched_yield sendfile setgid setpgid setpriority setsid setuid statvfs fstatvfs sync sysconf tcgetpgrp ttyname uname
wait wait3 wait4 writev
"""
OS_NAMES = set(_OS_NAMES.split())
"""Names that `os` lacks on Windows, in Python 3.11 to 3.13."""
_SIGNAL_NAMES = """
ITIMER_REAL SIGALRM SIGBUS SIGCHLD SIGCONT SIGHUP SIGIO SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP SIGUSR1 SIGUSR2
SIGXCPU SIGXFSZ SIG_BLOCK alarm getitimer pause pthread_kill pthread_sigmask setitimer siginterrupt sigpending
sigwait
"""
SIGNAL_NAMES = set(_SIGNAL_NAMES.split())
"""Names that `signal` lacks on Windows."""


class _NoSuchModule(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def remove_posix():
    """Make `MODULES` unimportable and delete `OS_NAMES` and `SIGNAL_NAMES`."""
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, _NoSuchModule())
    for module, names in ((os, OS_NAMES), (signal, SIGNAL_NAMES)):
        for name in names & set(dir(module)):
            delattr(module, name)
