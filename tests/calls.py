"""A whole call of each command of dom0, for what all of them must say alike."""

from __future__ import annotations

CALLS = (
    ("qfilexchg", "up"),
    ("qfilexchg", "restart"),
    ("qfilexchg", "down"),
    ("qfilexchg", "policy"),
    ("qfilexchg", "status"),
    ("qfilexchg", "monitor"),
    ("qfilexchg", "history"),
    ("qfilexchg-agent",),
    ("qfilexchg-agent", "--tty"),
    ("qfilexchgd",),
    ("qubes_restore", "savefile"),
    ("qvm-console", "work"),
    ("qvm-copy-in", "work", "/etc/hostname"),
    ("qvm-copy-out", "work", "file"),
    ("qvm-create", "work"),
    ("qvm-create-default-dvm", "--default-template"),
    ("qvm-kill", "work"),
    ("qvm-ls",),
    ("qvm-remove", "work"),
    ("qvm-run", "work", "true"),
    ("qvm-shutdown", "work"),
    ("qvm-start", "work"),
    ("qvm-template", "show"),
    ("qvm-template", "build"),
    ("qvm-template", "install", "hello"),
    ("qvm-template", "list"),
    ("qvm-template", "remove", "hello"),
    ("qvm-template", "update"),
    ("qvm-template", "use", "folder"),
)
"""All except ``qfilexchg doctor``, which has more to say than one line, and what no Xen needs."""

NOT_ON_XEN = {"qxenstored"}
"""Xen brings a store of its own."""
