"""A command that goes on in dom0 or in a VM while the test does something else."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager

from qfilexchg.dom0.vms import run

DEADLINE_S = 500.0
"""For anything that is waited for in the machine, where everything is slow, on a busy host."""

Begin = Callable[[], AbstractAsyncContextManager[run.Session]]


@contextlib.contextmanager
def event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop in a thread of its own, on which commands go on."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class Running:
    """One command, from its beginning on. Whoever makes it waits for its end, or closes it, which hangs it up."""

    def __init__(self, loop: asyncio.AbstractEventLoop, argv: tuple[str, ...], begin: Begin) -> None:
        self.argv = argv
        self._loop = loop
        self._heard = threading.Condition()
        self._out = bytearray()
        self._error = bytearray()
        self._read_bytes = 0
        self._input: asyncio.Queue[bytes] = asyncio.Queue()
        self._end = asyncio.run_coroutine_threadsafe(self._run(begin), loop)
        self._end.add_done_callback(lambda _end: self._note(bytearray(), b""))

    async def _run(self, begin: Begin) -> int:
        async with begin() as session:
            feeding = asyncio.create_task(session.feed(self))
            try:
                return await session.output(lambda data: self._note(self._out, data), lambda data: self._note(self._error, data))
            finally:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)

    def _note(self, where: bytearray, data: bytes) -> None:
        with self._heard:
            where += data
            self._heard.notify_all()

    async def read(self) -> bytes:
        """Of the session's input; not for tests."""
        return await self._input.get()

    def write(self, data: bytes) -> None:
        """Give it input, which must not be empty."""
        assert data
        self._loop.call_soon_threadsafe(self._input.put_nowait, data)

    def end_input(self) -> None:
        self._loop.call_soon_threadsafe(self._input.put_nowait, b"")

    def line(self) -> bytes:
        """The next line of its output."""
        return self.until(b"\n")

    def until(self, text: bytes) -> bytes:
        """Its output up to ``text``, from where the last call of this or of :meth:`line` has ended."""
        deadline = time.monotonic() + DEADLINE_S
        with self._heard:
            while (at := self._out.find(text, self._read_bytes)) < 0:
                assert not self._end.done(), f"{self.argv} has ended without {text!r}: {self.said}"
                assert self._heard.wait(deadline - time.monotonic()), f"{self.argv} does not say {text!r}: {self.said}"
            begin, self._read_bytes = self._read_bytes, at + len(text)
            return bytes(self._out[begin : self._read_bytes])

    @property
    def said(self) -> str:
        """All that it has said so far."""
        return (self._out + self._error).decode("utf-8", "backslashreplace")

    @property
    def ended(self) -> bool:
        return self._end.done()

    def wait(self, deadline_s: float = DEADLINE_S) -> subprocess.CompletedProcess[bytes]:
        """Its end, whatever its status; its input ends here."""
        self.end_input()
        try:
            status = self._end.result(deadline_s)
        except concurrent.futures.TimeoutError:
            self.close()
            raise AssertionError(f"{self.argv} has not ended within {deadline_s:g} s: {self.said}") from None
        return subprocess.CompletedProcess(self.argv, status, bytes(self._out), bytes(self._error))

    def close(self) -> None:
        """End it, as a closed terminal would."""
        self._end.cancel()
        with contextlib.suppress(concurrent.futures.CancelledError, Exception):
            self._end.result(DEADLINE_S)
