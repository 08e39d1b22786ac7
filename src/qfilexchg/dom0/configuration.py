"""What the person can set: /etc/qfilexchg/qfilexchg.toml for all users of a computer, then qfilexchg.toml of one home."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from qfilexchg.errors import CallerError

SYSTEM_FILE = Path("/etc/qfilexchg/qfilexchg.toml")

FILE_MAX = 64 << 10
"""Bytes of a configuration file; a longer one is another file by mistake."""


def _number(default: int, *, least: int, most: int) -> int:
    number: int = field(default=default, metadata={"least": least, "most": most})
    return number


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """All settings, whole numbers each. A key of the file is the name of a field."""

    pendrive_size_bytes: int = _number(1 << 30, least=1 << 20, most=1 << 36)
    """A pendrive's size where the VM asks for none. It costs no room on the disk before it is filled."""
    pendrive_max_bytes: int = _number(1 << 36, least=1 << 20, most=1 << 40)
    """The largest pendrive that a VM may ask for, and so the most that one VM can take of the host's disk at a time."""
    question_timeout_s: int = _number(60, least=5, most=3600)
    """A question that nobody has answered by then is answered with no."""
    queue_timeout_s: int = _number(3600, least=1, most=7 * 86400)
    """How long a transfer waits for a receiver that still has another pendrive."""
    vm_memory_mb: int = _number(512, least=64, most=1 << 20)
    """The memory of a new VM where none is given. With a desktop it gets 512 at least."""
    disposables_max: int = _number(8, least=1, most=1000)
    """How many documents may be in DisposableVMs at a time, of all VMs together: each is a running VM."""
    document_timeout_s: int = _number(0, least=0, most=30 * 86400)
    """How long a document may be open in its DisposableVM, which is ended then and brings nothing back. 0: as long as it takes."""
    preload: int = _number(0, least=0, most=16)
    """How many DisposableVMs are kept ready, restored and stopped, for documents that are yet to come."""
    disposable_memory_mb: int = _number(256, least=192, most=1 << 20)
    """The memory of a DisposableVM. One with a desktop gets 512 at least."""


class BadConfiguration(CallerError):
    """A configuration file that cannot be read, or a key in it that is unknown or has a value it cannot have."""

    def __init__(self, file: Path, key: str, why: str) -> None:
        super().__init__(file, key, why)
        self.file = file
        self.key = key
        self.why = why

    def __str__(self) -> str:
        return f"{self.file}: {self.key}: {self.why}" if self.key else f"{self.file}: {self.why}"


def load(files: Iterable[Path]) -> Configuration:
    """The settings of ``files``, a later one's before an earlier one's; a file that does not exist sets nothing.

    Raises :exc:`BadConfiguration`.
    """
    configuration = Configuration()
    for file in files:
        settings = _read(file)
        for key, value in settings.items():
            _check(file, key, value)
        configuration = replace(configuration, **settings)
        size_bytes, max_bytes = configuration.pendrive_size_bytes, configuration.pendrive_max_bytes
        if size_bytes > max_bytes:
            raise BadConfiguration(file, "pendrive_size_bytes", f"{size_bytes} is above pendrive_max_bytes, {max_bytes}: change either")
    return configuration


def _read(file: Path) -> dict[str, int]:
    """The file's table. The values are whatever TOML has until they are checked."""
    try:
        with file.open("rb") as stream:
            data = stream.read(FILE_MAX + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BadConfiguration(file, "", f"cannot be read ({error.strerror})") from error
    if len(data) > FILE_MAX:
        raise BadConfiguration(file, "", f"is longer than {FILE_MAX} bytes")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise BadConfiguration(file, "", "is not UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadConfiguration(file, "", f"is not TOML: {error}") from None


def _check(file: Path, key: str, value: object) -> None:
    known = {field.name: field.metadata for field in fields(Configuration)}
    if key not in known:
        raise BadConfiguration(file, key[:64].encode("unicode_escape").decode("ascii"), f"is unknown; the keys are {', '.join(known)}")
    least, most = known[key]["least"], known[key]["most"]
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadConfiguration(file, key, f"takes a whole number, and not {type(value).__name__}")
    if not least <= value <= most:
        raise BadConfiguration(file, key, f"takes a number from {least} to {most}")
