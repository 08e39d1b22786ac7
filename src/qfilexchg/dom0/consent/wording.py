"""The words in which a person is asked: one text for every kind of agent, the VMs first."""

from __future__ import annotations

from typing import assert_never

from qfilexchg.dom0.consent.protocol import Kind, Question
from qfilexchg.protocol.names import VmName

NEW_DISPOSABLE = "a new DisposableVM"


def headline(question: Question) -> str:
    """What happens if the answer is yes, in one line: *work → personal: hand over 64.2 MiB?*"""
    size = human_size(question.size_bytes)
    match question.kind:
        case Kind.COPY:
            what = f"open a document of {size} in it?" if question.target is None else f"hand over {size}?"
        case Kind.WAIT:
            what = f"wait to hand over {size}?"
        case _:
            assert_never(question.kind)
    return f"{question.source} → {target_name(question)}: {what}"


def explanation(question: Question) -> list[str]:
    """Who asks for what, and what else matters, in sentences."""
    source = party(question.source, question.source_label)
    target = target_name(question) if question.target is None else party(question.target, question.target_label)
    size = human_size(question.size_bytes)
    sentences = []
    match question.kind:
        case Kind.COPY if question.target is None:
            sentences.append(f"{source} asks for {target} to open a document of {size} in. What is changed in it comes back to {source}.")
        case Kind.COPY:
            sentences.append(f"{source} asks to give {target} its pendrive with {size} of files.")
            if question.busy:
                sentences.append(f"{target_name(question)} still has another pendrive: after a yes this one waits for it to be ejected.")
        case Kind.WAIT:
            sentences.append(f"{source} may give {target} its pendrive with {size} of files, by your rules.")
            sentences.append(f"{target_name(question)} still has another pendrive: shall this one wait for it to be ejected?")
        case _:
            assert_never(question.kind)
    return sentences


def heading(question: Question) -> str:
    """The question itself, as a window has it above everything else."""
    match question.kind:
        case Kind.COPY if question.target is None:
            return f"Let {question.source} open a document in a new DisposableVM?"
        case Kind.COPY:
            return f"Let {question.source} copy files to {question.target}?"
        case Kind.WAIT:
            return f"{target_name(question)} is busy. Let {question.source} wait for it?"
        case _:
            assert_never(question.kind)


def details(question: Question) -> list[tuple[str, str]]:
    """What a person should know before the answer, in lines of a key word and a sentence or two. The names stand above them."""
    size = human_size(question.size_bytes)
    if question.target is None:
        lines = [
            ("Size", f"A document of {size}."),
            ("A copy", "What is changed there comes back and takes the place of the document. Nothing else comes back."),
            ("Then", "It opens in a VM that is made for it, and destroyed with it."),
        ]
    else:
        volume = question.source.volume_label
        lines = [
            ("Size", f"{size} on a virtual pendrive."),
            ("A copy", "The files stay where they are, too."),
            ("Then", f"They appear there as a volume called {volume}, until it is ejected."),
        ]
    if question.kind is Kind.WAIT:
        lines.insert(0, ("Rules", "Yours allow this copy."))
    if question.busy or question.kind is Kind.WAIT:
        lines.append(("Busy", "There still is another pendrive in it. This one waits until that is ejected."))
    return lines


def always(question: Question) -> str:
    """What is offered beside a yes where the daemon can remember it."""
    return "Always allow this, for all its documents" if question.target is None else "Always allow this, for these two VMs"


def allow_word(question: Question) -> str:
    return "Wait" if question.kind is Kind.WAIT else "Allow"


def target_name(question: Question) -> str:
    return NEW_DISPOSABLE if question.target is None else question.target


def party(name: VmName, label: str | None) -> str:
    """A VM with its colour, where it has one."""
    return f"{name} ({label})" if label else name


def human_size(size_bytes: int) -> str:
    """A size with three digits that matter: 0 bytes, 999 bytes, 1.50 KiB, 64.2 MiB, 1.00 GiB."""
    if size_bytes == 1:
        return "1 byte"
    if size_bytes < 1000:
        return f"{size_bytes} bytes"
    size = float(size_bytes)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
        size /= 1024
        for decimals, limit in ((2, 9.995), (1, 99.95), (0, 999.5)):
            if size < limit:
                return f"{size:.{decimals}f} {unit}"
    raise AssertionError(size_bytes)


def printable(text: str) -> str:
    """``text`` with everything escaped that could move a cursor, hide or turn round what is shown."""
    return "".join(character if character.isprintable() else character.encode("unicode_escape").decode("ascii") for character in text)
