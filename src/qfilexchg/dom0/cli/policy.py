"""``qfilexchg policy``: all rules in their order, and the end of one that was made by the answer *Always*."""

from __future__ import annotations

import argparse

from qfilexchg.dom0.cli.arguments import checked, vm_name
from qfilexchg.dom0.exchange import policy, remembered
from qfilexchg.dom0.exchange.policy import Rule, Word
from qfilexchg.dom0.home import Home
from qfilexchg.errors import CallerError
from qfilexchg.protocol.names import DISPOSABLE, VmName


class Broken(CallerError):
    """A file of rules that cannot be understood."""

    def __init__(self, fault: str) -> None:
        super().__init__(fault)
        self.fault = fault

    def __str__(self) -> str:
        return f"{self.fault}. Nothing is allowed until that is put right"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The words after ``qfilexchg policy``."""
    actions = command.add_subparsers(dest="action", metavar="ACTION")
    actions.add_parser("list", help="list all rules, the first that matches decides; so without an ACTION")
    forget = actions.add_parser("forget", help="remove a rule that was made by the answer 'Always'")
    forget.add_argument("source", type=vm_name, metavar="SOURCE")
    forget.add_argument("target", type=checked(_target), metavar="TARGET", help=f"a VM's name, or {DISPOSABLE}")


def run(options: argparse.Namespace) -> int:
    """``qfilexchg policy``. Raises :exc:`Broken`, and what :func:`~qfilexchg.dom0.exchange.remembered.forget` does."""
    home = Home.from_environment()
    if options.action == "forget":
        home.make()
        remembered.forget(home.policy, options.source, options.target)
        return 0
    rules = policy.load((policy.SYSTEM_FOLDER, home.policy))
    if rules.fault is not None:
        raise Broken(rules.fault)
    print(table(rules.rules))
    return 0


def table(rules: tuple[Rule, ...]) -> str:
    """One line for each, with the file that it stands in."""
    words = [str(rule).split(" ", 3) for rule in rules]
    source, target = (max(len(line[column]) for line in [["SOURCE", "TARGET"], *words]) for column in (0, 1))
    lines = [("SOURCE", "TARGET", "ACTION", "WHERE"), *((*line[:3], line[3].strip("()")) for line in words)]
    return "\n".join(f"{line[0]:<{source}}  {line[1]:<{target}}  {line[2]:<6}  {line[3]}" for line in lines)


def _target(word: str) -> VmName | Word:
    return Word.DISPOSABLE if word == DISPOSABLE else VmName.parse(word)
