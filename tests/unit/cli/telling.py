"""A daemon of which there is only the socket at which it tells its status."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

from qfilexchg.dom0.exchange import messages as m
from qfilexchg.dom0.exchange.phases import Course, Phase
from qfilexchg.dom0.exchange.status import Document, Outcome, Pendrive, Question, Status, Vm
from qfilexchg.protocol.names import VmName

WORK, PERSONAL, DISP = (VmName.parse(name) for name in ("work", "personal", "disp3"))
PENDRIVE = Pendrive("0a", Phase.ASKING, Course.COPY, WORK, PERSONAL, 0, False, 1 << 30, 4312064, 1000.0)
QUESTION = Question(7, "copy", WORK, PERSONAL, 4312064, False, 1000.0, 1060.0)
DOCUMENT = Document(DISP, WORK, 2, True, m.Fate.OPEN, 900.0)
OUTCOME = Outcome(800.0, WORK, PERSONAL, 4096, "denied, the person said no")
VMS = (Vm(WORK, 1, False, "0a", None), Vm(PERSONAL, 2, False, None, None), Vm(DISP, 4, True, None, None))
STATUS = Status(1012.0, VMS, (PENDRIVE,), (QUESTION,), (DOCUMENT,), (OUTCOME,))
NOTHING = Status(1000.0, (), (), (), (), ())


class Telling:
    """Says ``data`` to the first who connects; then hangs up, unless it is to ``stay``."""

    def __init__(self, path: Path, data: bytes, *, stay: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tell, args=(data, stay), daemon=True)
        self._thread.start()

    def _tell(self, data: bytes, stay: bool) -> None:
        connection, _ = self._listener.accept()
        self._listener.close()
        with connection, contextlib.suppress(ConnectionError):  # who listens may go away before the end
            connection.sendall(data)
            if stay:
                self._ended.wait()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
