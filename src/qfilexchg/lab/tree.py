"""Make a tree of files as a person's home has it: letters, photographs, empty files, deep folders, names in many scripts.

A program for the inside of a VM, fed to its Python: it needs no more than the standard library, and its one argument is the
folder to make. The content is the same each time. The last line it prints is ``FILES BYTES``.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

NAMES = (
    *("Annual report", "letter to the bank", "Ελλάδα 2019", "фотографии из отпуска", "写真", "résumé", "ägyptische Straße"),
    *("नमस्ते", "صور", "emoji 🏔 trip", "tax.return.2024", "a'b", "100% done", "notes (copy 2)", "#channel", "x=y; z", "$(id)"),
    *("-rf", "日本語の長い名前のファイル"),
)
WORDS = ("files", "go", "from", "one", "virtual", "machine", "to", "another", "and", "neither", "need", "trust", "the", "other")
PHOTOS = 18
PHOTO_BYTES = (2 << 20, 6 << 20)
LETTERS = 280
EMPTY = 12
DEPTH = 12


def make(top: Path, seed: int = 2010) -> tuple[int, int]:
    """Make the tree in ``top``, which must not exist; return how many files, of how many bytes together."""
    chance = random.Random(seed)  # noqa: S311  the same tree each time, and no secret
    sizes = []

    def write(folder: Path, name: str, data: bytes) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / name
        with path.open("xb") as file:
            file.write(data)
        moment = 1_000_000_000 + 2 * chance.randrange(400_000_000)
        os.utime(path, (moment, moment))
        sizes.append(len(data))

    top.mkdir(parents=True)
    for number in range(PHOTOS):
        name = f"IMG_{number:04} {chance.choice(NAMES)}.jpg"
        write(top / "Pictures" / "summer 🌞", name, chance.randbytes(chance.randrange(*PHOTO_BYTES)))
    for number in range(LETTERS):
        text = " ".join(chance.choices(WORDS, k=chance.randrange(20, 4000)))
        folder = top / "Documents" / chance.choice(NAMES) / f"{chance.randrange(2001, 2026)}"
        write(folder, f"{number:03} {chance.choice(NAMES)}.txt", text.encode())
    for number in range(EMPTY):
        write(top / "empty", f"{number}", b"")
    write(top.joinpath(*(f"level {depth}" for depth in range(DEPTH))), "the deepest.txt", b"found\n")
    return len(sizes), sum(sizes)


if __name__ == "__main__":
    print(*make(Path(sys.argv[1])))
