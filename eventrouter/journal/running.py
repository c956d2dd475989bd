"""Which claims are being run, in a file that outlives the process but costs no system call: memory shared with the disk's cache."""

from __future__ import annotations

import mmap
from pathlib import Path

_PLACES = 1024
_WIDTH = 8  # bytes of a sequence number; 0: nobody's place


class Running:
    """path: made if missing; None: of this process alone. before: what a dead predecessor was running."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._map(_PLACES)
        self.before = [seq for seq in self.places if seq]

    def _map(self, least: int) -> None:
        """Raises OSError. The former map, if any, still holds then."""
        if self._path is None:
            memory = mmap.mmap(-1, least * _WIDTH)
        else:
            with self._path.open("a+b") as file:
                # Written, not just made longer: on a full disk a hole in a map is a SIGBUS at its first use.
                file.write(bytes(max(0, least * _WIDTH - file.tell())))
                file.flush()
                memory = mmap.mmap(file.fileno(), file.tell() // _WIDTH * _WIDTH)
        self._memory = memory
        self.places = memoryview(memory).cast("q")

    def clear(self) -> None:
        """Forget the predecessor."""
        self._memory[:] = bytes(len(self._memory))
        self._free = list(range(len(self.places)))

    def start(self, seq: int) -> int:
        """Its place, for `end`; -1: the disk has none left."""
        if not self._free and not self._grow():
            return -1
        place = self._free.pop()
        self.places[place] = seq
        return place

    def end(self, place: int) -> None:
        self.places[place] = 0
        self._free.append(place)

    def _grow(self) -> bool:
        memory, places = self._memory, self.places
        try:
            self._map(2 * len(places))
        except OSError:
            return False
        self._memory[: len(memory)] = memory[:]  # a map of no file begins empty
        self._free.extend(range(len(places), len(self.places)))
        places.release()
        memory.close()
        return True

    def close(self) -> None:
        """Nothing runs any more: a stop is no death."""
        self.clear()
        self.places.release()
        self._memory.close()
