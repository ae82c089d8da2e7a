"""What was made of files is kept in memory, up to a size, and made again when a file has changed."""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


class FileCache(Generic[T]):
    """Keeps what was made of files; of each file it is made once, however many ask for it at a time.

    Args:
        size: returns the bytes that a result takes.
        budget: bytes of all results; those that nobody has asked for the longest are forgotten.
    """

    def __init__(self, size: Callable[[T], int], budget: int):
        self._size, self._budget, self._lock = size, budget, threading.Lock()
        self._making: dict[Path, threading.Lock] = {}
        self._kept: OrderedDict[Path, tuple[Hashable, T]] = OrderedDict()

    def get(self, path: Path, options: Hashable, make: Callable[[], T]) -> T:
        """Returns what `make` makes of a file, or has made of it before.

        Args:
            options: that the result depends on, beside the file's content.
        """
        with self._lock:
            making = self._making.setdefault(path, threading.Lock())
        with making:
            key = version_of(path), options
            with self._lock:
                known = self._kept.get(path)
            try:
                result = known[1] if known and known[0] == key else make()
            finally:
                with self._lock:
                    self._making.pop(path, None)
            self._keep(path, key, result)
        return result

    def _keep(self, path: Path, key: Hashable, result: T) -> None:
        """Remembers a result, and forgets old ones."""
        with self._lock:
            self._kept.pop(path, None)
            self._kept[path] = key, result
            while len(self._kept) > 1 and sum(self._size(kept) for _, kept in self._kept.values()) > self._budget:
                self._kept.popitem(last=False)


def version_of(path: Path) -> int:
    """Returns a number that is another one once a file has changed; 0 where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return 0
    return (status.st_mtime_ns ^ status.st_size << 20 ^ status.st_ino) % 2**53
