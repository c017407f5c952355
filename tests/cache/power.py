"""What a disk may hold after a loss of power: everything synced, and of the rest any part, torn and out of order.

The model is weaker than file systems are, so that what survives it survives them. Of a file's writes since its last
sync any subset is there, each torn into sectors of 512 bytes; of a folder's names made, renamed and removed since that
folder's last sync any subset is done, or those up to a moment. Syncing a file does not sync its name.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

from disk import Change

SECTOR = 512


class Inode:
    """A file: its bytes that are safe, and what was done to it since."""

    def __init__(self, data: bytes = b"") -> None:
        self.safe = bytearray(data)
        self.loose: list[Change] = []

    def now(self) -> bytes:
        """Return what a program reads."""
        return carried_out(self.safe, self.loose)

    def left(self, rng: random.Random) -> bytes:
        """Return what may be left of it."""
        share = rng.choice([0.0, 0.5, 1.0])
        kept = [change for change in self.loose if rng.random() < share]
        return carried_out(self.safe, [piece for change in kept for piece in torn(change, rng)])


class Folder:
    """A folder: its names that are safe, and what was done to them since."""

    def __init__(self) -> None:
        self.safe: dict[str, Inode | Folder] = {}
        self.names: dict[str, Inode | Folder] = {}
        self.loose: list[list[tuple[str, Inode | Folder | None]]] = []

    def set(self, *entries: tuple[str, Inode | Folder | None]) -> None:
        """Let names lead elsewhere, or nowhere, in one step."""
        self.loose.append(list(entries))
        self.names = renamed(self.names, [entries])

    def left(self, rng: random.Random) -> dict[str, Inode | Folder]:
        """Return which of its names may be left, and what they lead to."""
        if rng.random() < 0.5:
            return renamed(self.safe, self.loose[: rng.randint(0, len(self.loose))])
        return renamed(self.safe, [step for step in self.loose if rng.random() < 0.5])


class Disk:
    """A folder on a disk that can lose its power."""

    def __init__(self) -> None:
        self.root = Folder()

    def do(self, changes: Iterable[Change]) -> None:
        """Carry changes out, as a `Recorder` kept them."""
        for change in changes:
            folder, name = self._find(change.path)
            target = folder.names.get(name) if name else folder
            if change.kind in {"create", "mkdir"}:
                folder.set((name, Inode() if change.kind == "create" else Folder()))
            elif change.kind in {"unlink", "rmdir"}:
                folder.set((name, None))
            elif change.kind == "rename":
                there, new = self._find(change.to)
                if there is folder:
                    folder.set((name, None), (new, target))
                else:
                    folder.set((name, None))
                    there.set((new, target))
            elif change.kind == "sync":
                self._sync(target)
            else:
                assert isinstance(target, Inode), change
                target.loose.append(change)

    def lose_power(self, rng: random.Random) -> None:
        """Become what may be left; all of that is safe."""
        self.root = self._left(self.root, rng)

    def put(self, to: Path) -> None:
        """Write what a program sees into a real folder."""
        put(self.root, to)

    def _find(self, path: str) -> tuple[Folder, str]:
        *folders, name = path.split("/")
        at = self.root
        for part in folders:
            inner = at.names[part]
            assert isinstance(inner, Folder)
            at = inner
        return at, name

    def _sync(self, target: Inode | Folder | None) -> None:
        if isinstance(target, Inode):
            target.safe = bytearray(target.now())
        else:
            assert isinstance(target, Folder)
            target.safe = dict(target.names)
        target.loose = []

    def _left(self, folder: Folder, rng: random.Random) -> Folder:
        left = Folder()
        for name, item in folder.left(rng).items():
            left.safe[name] = self._left(item, rng) if isinstance(item, Folder) else Inode(item.left(rng))
        left.names = dict(left.safe)
        return left


def put(folder: Folder, to: Path) -> None:
    """Write a folder as programs see it into a real one."""
    to.mkdir()
    for name, item in folder.names.items():
        if isinstance(item, Folder):
            put(item, to / name)
        else:
            (to / name).write_bytes(item.now())


def carried_out(data: bytes | bytearray, changes: Iterable[Change]) -> bytes:
    """Return a file's bytes after some changes."""
    found = bytearray(data)
    for change in changes:
        end = change.at + len(change.data)
        if change.kind == "size":
            del found[change.at :]
        found.extend(bytes(max(0, end - len(found))))
        if change.kind == "write":
            found[change.at : end] = change.data
    return bytes(found)


def torn(change: Change, rng: random.Random) -> list[Change]:
    """Return the sectors of a write that arrived: all of them, or some."""
    if change.kind != "write" or rng.random() < 0.5:
        return [change]
    pieces, at = [], 0
    while at < len(change.data):
        n = SECTOR - (change.at + at) % SECTOR
        pieces.append(Change("write", change.path, change.at + at, change.data[at : at + n]))
        at += n
    return [piece for piece in pieces if rng.random() < 0.5]


def renamed(
    names: dict[str, Inode | Folder], steps: Iterable[Iterable[tuple[str, Inode | Folder | None]]]
) -> dict[str, Inode | Folder]:
    """Return a folder's names after some steps."""
    found = dict(names)
    for step in steps:
        for name, item in step:
            if item is None:
                found.pop(name, None)
            else:
                found[name] = item
    return found
