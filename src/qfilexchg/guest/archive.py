"""Packs what a survey found into one tar file, which keeps what FAT cannot: any name, modes, links, exact times.

The format is PAX (POSIX.1-2001). The file's size is known before a pendrive is asked for: every header is made twice.
"""

from __future__ import annotations

import os
import tarfile

from qfilexchg.guest import fat
from qfilexchg.guest.copying import CHUNK_BYTES, SourceChanged, SourceUnreadable, check_unchanged, open_unchanged, write_failed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import BinaryIO, Final

    from qfilexchg.guest.interruption import Interruption
    from qfilexchg.guest.progress import Progress
    from qfilexchg.guest.survey import Item

_USUAL_NAME: Final = "files.tar"


def archive_name(items: Sequence[Item]) -> str:
    """The archive's name on the pendrive: that of what it holds, if it holds one thing and FAT can hold the name."""
    tops = [item.target for item in items if "/" not in item.target]
    name = f"{tops[0]}.tar"
    return name if len(tops) == 1 and fat.name_problem(name) is None else _USUAL_NAME


def archive_bytes(items: Sequence[Item]) -> int:
    """The size of the archive of ``items``."""
    counted = _Counter()
    with tarfile.TarFile(fileobj=counted, mode="w", format=tarfile.PAX_FORMAT) as tar:  # type: ignore[arg-type]
        for item in items:
            info = _header(tar, item)
            counted.write(info.tobuf(tarfile.PAX_FORMAT, tar.encoding, "surrogateescape"))  # as TarFile.addfile does, which wants the data
            if info.isreg():
                counted.size += -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            tar.offset = counted.size  # from where the end is padded
    return counted.size


class Archive:
    """Writes the archive into ``folder``; see :class:`qfilexchg.guest.copying.Copy`, which does the same without packing."""

    def __init__(self, folder: str, progress: Progress, interruption: Interruption, needed_bytes: int) -> None:
        self._folder = folder
        self._progress = progress
        self._interruption = interruption
        self._needed_bytes = needed_bytes

    def run(self, items: Sequence[Item]) -> None:
        """Pack everything. Raises what :meth:`Copy.run` raises."""
        target = os.path.join(self._folder, archive_name(items))
        try:
            file = open(target, "xb", buffering=CHUNK_BYTES)  # noqa: SIM115 - its close must be told from the sources' errors
        except OSError as error:
            raise write_failed(target, error, self._needed_bytes) from error
        sink = _Sink(file, target, self._progress, self._interruption, self._needed_bytes)
        try:
            with tarfile.TarFile(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT, copybufsize=CHUNK_BYTES) as tar:  # type: ignore[arg-type]
                for item in items:
                    self._add(tar, item)
                    if not item.is_folder:
                        self._progress.file_done()
        finally:
            sink.close()

    def _add(self, tar: tarfile.TarFile, item: Item) -> None:
        self._interruption.check()
        info = _header(tar, item)
        if not info.isreg():
            tar.addfile(info)
            return
        source = open_unchanged(item)
        with open(source, "rb", buffering=0) as file:
            try:
                tar.addfile(info, file)
            except OSError as error:
                raise SourceUnreadable(item.source, error) if error.errno else SourceChanged(item.source) from error
            check_unchanged(item, os.fstat(source))


def _header(tar: tarfile.TarFile, item: Item) -> tarfile.TarInfo:
    try:
        info = tar.gettarinfo(item.source, item.target)
        check_unchanged(item, os.lstat(item.source))
    except FileNotFoundError as error:
        raise SourceChanged(item.source) from error
    except OSError as error:
        raise SourceUnreadable(item.source, error) from error
    assert info is not None, "a survey for an archive leaves sockets out"
    return info


class _Counter:
    """A file that is never written: it counts."""

    def __init__(self) -> None:
        self.size = 0

    def write(self, data: bytes) -> int:
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        return self.size


class _Sink:
    """The archive's file. An error here is the pendrive's, not the source's."""

    def __init__(self, file: BinaryIO, target: str, progress: Progress, interruption: Interruption, needed_bytes: int) -> None:
        self._file = file
        self._target = target
        self._progress = progress
        self._interruption = interruption
        self._needed_bytes = needed_bytes

    def write(self, data: bytes) -> int:
        self._interruption.check()
        try:
            written = self._file.write(data)
        except OSError as error:
            raise write_failed(self._target, error, self._needed_bytes) from error
        self._progress.advance(len(data))
        return written

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise write_failed(self._target, error, self._needed_bytes) from error
