"""Every command of dom0, and where it is."""

from __future__ import annotations

COMMANDS = {
    "qfilexchg": "qfilexchg.dom0.cli.qfilexchg:main",
    "qfilexchg-agent": "qfilexchg.dom0.cli.agent:main",
    "qfilexchgd": "qfilexchg.dom0.cli.qfilexchgd:main",
    "qubes_restore": "qfilexchg.dom0.cli.disposables:restore",
    "qvm-console": "qfilexchg.dom0.cli.run:console",
    "qvm-copy-in": "qfilexchg.dom0.cli.copy:copy_in",
    "qvm-copy-out": "qfilexchg.dom0.cli.copy:copy_out",
    "qvm-create-default-dvm": "qfilexchg.dom0.cli.disposables:create_default_dvm",
    "qvm-create": "qfilexchg.dom0.cli.vms:create",
    "qvm-kill": "qfilexchg.dom0.cli.vms:kill",
    "qvm-ls": "qfilexchg.dom0.cli.vms:ls",
    "qvm-remove": "qfilexchg.dom0.cli.vms:remove",
    "qvm-run": "qfilexchg.dom0.cli.run:run",
    "qvm-shutdown": "qfilexchg.dom0.cli.vms:shutdown",
    "qvm-start": "qfilexchg.dom0.cli.vms:start",
    "qvm-template": "qfilexchg.dom0.cli.template:main",
    "qxenstored": "qfilexchg.xenstore.server:main",
}
"""Name → module and function. The function takes the arguments and returns the exit status."""
