"""qubes_penctl: one request to dom0, by hand or from a script. The other tools make the same requests themselves."""

from __future__ import annotations

import sys

from qfilexchg.errors import QfilexchgError
from qfilexchg.guest.interruption import Cancelled, Interruption
from qfilexchg.guest.outcome import BROKEN, DONE, Failed, Refused, StillMounted, Usage, exit_status
from qfilexchg.guest.outgoing import Outgoing
from qfilexchg.guest.request import Exchange, fresh_id
from qfilexchg.guest.slot import OUTGOING
from qfilexchg.protocol.names import DISPOSABLE, VmName
from qfilexchg.protocol.qpen import SEQ_MAX, SIZE_DIGITS_MAX, Request
from qfilexchg.xenstore.blocking import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from qfilexchg.protocol.qpen import Reply

HELP: Final = """\
usage: qubes_penctl new [BYTES]
       qubes_penctl send VM [SEQ]
       qubes_penctl send disposable SEQ
       qubes_penctl umount | cancel | status | killme

Asks dom0 for one step of a file exchange, prints each of its answers on a line, and waits for the last.

  new       an empty pendrive, which appears as /dev/xvdg; of 1 GiB if BYTES does not say otherwise
  send      hand the pendrive in /dev/xvdg to another VM; unmount it first. The person in dom0 may be asked
  umount    done with the pendrive in /dev/xvdh; dom0 deletes it
  cancel    unmount and give back the pendrive in /dev/xvdg, whatever is on it, even while the person is asked
  status    which pendrives this VM has
  killme    destroy this DisposableVM

Ctrl-C during new or send gives the pendrive back.

Exit status: 0 done, 1 broken, 2 not understood, 3 refused, 5 larger than a pendrive may be,
             6 there is one already, or it is still mounted, 130 cancelled
"""

_COMMAND: Final = "qubes_penctl"


def parse(words: Sequence[str]) -> Request:
    """The request that the command line asks for, with a fresh id. Raises :exc:`Usage` and BadName."""
    request_id = fresh_id()
    match words:
        case ["new"]:
            return Request("new", request_id=request_id)
        case ["new", size]:
            return Request("new", size_bytes=_number(size, "BYTES", 10**SIZE_DIGITS_MAX - 1), request_id=request_id)
        case ["send", "disposable"]:
            raise Usage("a DisposableVM needs a SEQ", _COMMAND)
        case ["send", target, *seq] if len(seq) <= 1:
            number = _number(seq[0], "SEQ", SEQ_MAX) if seq else 0
            return Request("send", target=None if target == DISPOSABLE else VmName.parse(target), seq=number, request_id=request_id)
        case [("umount" | "cancel" | "status" | "killme") as verb]:
            return Request(verb, request_id=request_id)
        case _:
            raise Usage("name one request", _COMMAND)


def _number(text: str, what: str, largest: int) -> int:
    if text.isascii() and text.isdecimal() and len(text) <= SIZE_DIGITS_MAX and 1 <= int(text) <= largest:
        return int(text)
    raise Usage(f"{what} is a decimal number from 1 to {largest}", _COMMAND)


def main(arguments: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    if words in (["-h"], ["--help"]):
        sys.stdout.write(HELP)
        return DONE
    try:
        request = parse(words)
        _prepare(request)
        with Interruption() as interruption, Store.open() as store:
            _carry_out(request, Exchange(store, interruption), interruption)
    except QfilexchgError as error:
        sys.stderr.write(f"{_COMMAND}: {error}\n")
        return exit_status(error)
    except OSError as error:  # a folder that is missing, or nobody who reads what is printed
        sys.stderr.write(f"{_COMMAND}: {error}\n")
        return BROKEN
    return DONE


def _prepare(request: Request) -> None:
    """See to it that dom0 takes no disk away under a mounted filesystem."""
    if request.verb in ("send", "cancel") and OUTGOING.mounted():
        if request.verb == "send":
            raise StillMounted(OUTGOING.folder)
        OUTGOING.abandon()


def _carry_out(request: Request, exchange: Exchange, interruption: Interruption) -> None:
    outgoing = Outgoing(exchange, _show)
    try:
        if request.verb == "new":
            outgoing.get(request.size_bytes)
            sys.stdout.write("attached\n")
        elif request.verb == "send":
            outgoing.send(request.target, request.seq)
            sys.stdout.write("delivered\n")
        else:
            reply = exchange.carry_out(request, _show)
            _show(reply)
            if reply.state in ("denied", "failed"):
                raise Refused if reply.state == "denied" else Failed(reply.detail)
    except Cancelled:
        interruption.shield()
        if outgoing.give_back():
            sys.stdout.write("delivered\n")
            return
        raise


def _show(reply: Reply) -> None:
    sys.stdout.write(f"{reply.state} {reply.detail}".rstrip() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
