"""A layer over the file operations of Python: it counts those below a folder; one may fail, or be the last."""

import errno
import fcntl
import io
import os
import shutil
from contextlib import contextmanager

import pytest

OPERATIONS = {
    os: "open close read write lseek fsync ftruncate stat lstat fstat mkdir rmdir replace unlink listdir scandir utime",
    fcntl: "flock",
    io: "open",
}
METHODS = ("read", "readinto", "write", "flush", "close")


class FileLayer:
    """Counts operations on paths below a folder and on files opened there; calls `before(number, name)` with each."""

    def __init__(self, folder, before):
        self.folder, self.before, self.count = os.path.abspath(folder), before, 0
        self._opened, self._aside = set(), False

    @contextmanager
    def active(self):
        """Within this context everything that opens and changes files goes through the layer."""
        with pytest.MonkeyPatch.context() as patched:
            for module, names in OPERATIONS.items():
                for name in names.split():
                    patched.setattr(module, name, self._counted(name, getattr(module, name)))
            yield self

    def operation(self, name):
        """Count one. What `before` does itself does not count."""
        self.count += 1
        self._aside = True
        try:
            self.before(self.count, name)
        finally:
            self._aside = False

    def _counted(self, name, call):
        def counted(place, *arguments, **how):
            if not self._is_ours(place):
                return call(place, *arguments, **how)
            self.operation(name)
            result = call(place, *arguments, **how)
            if call is OPEN:
                result = WatchedFile(result, self)
                self._opened.add(result.fileno())
            elif name == "open":
                self._opened.add(result)
            elif name == "close":
                self._opened.discard(place)
            return result

        return counted

    def closed(self, number):
        """A file object has closed its descriptor."""
        self._opened.discard(number)

    def _is_ours(self, place):
        if self._aside:
            return False
        if isinstance(place, int):
            return place in self._opened
        return os.path.abspath(os.fspath(place)).startswith(self.folder)


OPEN = io.open


class WatchedFile:
    """A file object whose calls are counted."""

    def __init__(self, file, layer):
        self._file, self._layer = file, layer

    def __getattr__(self, name):
        found = getattr(self._file, name)
        if name not in METHODS:
            return found

        def counted(*arguments):
            if self._file.closed:
                return found(*arguments)
            try:
                self._layer.operation(name)
            except OSError:
                if name == "close":  # the descriptor is gone, also if the last bytes could not be written
                    self._layer.closed(self._file.fileno())
                    self._file.close()
                raise
            number = self._file.fileno()
            result = found(*arguments)
            if name == "close":
                self._layer.closed(number)
            return result

        return counted

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __iter__(self):
        return iter(self._file)


def operations(folder, act):
    """How many file operations an act takes below a folder."""
    with FileLayer(folder, lambda number, name: None).active() as layer:
        act()
    return layer.count


def failing(number):
    """A `before` that lets the n-th operation fail: the disk is full, or broken."""
    error = (errno.ENOSPC, errno.EIO)[number % 2]

    def before(count, name):
        if count == number:
            raise OSError(error, os.strerror(error), name)

    return before


class States:
    """Copies of a folder, each content once.

    A process that is killed before an operation leaves the folder as it is then: what is not flushed is not there.
    """

    def __init__(self, folder, copies):
        self.folder, self._copies, self._seen = folder, copies, set()

    def add(self):
        """A copy of the folder as it is now; None if there is one already."""
        state = content(self.folder)
        if state in self._seen:
            return None
        self._seen.add(state)
        return shutil.copytree(self.folder, self._copies / str(len(self._seen)))

    def before_each_operation(self, act):
        """A copy for each operation of an act, and one for its end."""
        found = []
        with FileLayer(self.folder, lambda number, name: found.append(self.add())).active():
            act()
        return [copy for copy in [*found, self.add()] if copy is not None]


def content(folder):
    """Everything in a folder, by path."""
    files = sorted(folder.rglob("*"))
    return tuple((str(file.relative_to(folder)), file.read_bytes() if file.is_file() else None) for file in files)
