"""Every xenstore key of the exchange: where it stands, who writes it, with which permissions.

A VM reaches its own keys by relative paths; dom0 by absolute ones, made by :func:`home`.
"""

from __future__ import annotations

from qfilexchg.protocol.names import DomainId

DOMAINS = "/local/domain"
INTRODUCE_DOMAIN = "@introduceDomain"
RELEASE_DOMAIN = "@releaseDomain"

# Written by the toolstack.
NAME = "name"
VM_PATH = "vm"
VM_TYPE = "qubes_vm_type"
RESTORE_COMPLETE = "qubes_restore_complete"
SAVE_REQUEST = "qubes_save_request"
RANDOM_SEED = "qubes_random_seed"
"""On Xen: :data:`RANDOM_SEED_BYTES` random bytes in hexadecimal digits, for a restored VM to stir in. On QEMU it has a device for that."""
RANDOM_SEED_BYTES = 64

# Written by the VM, on nodes that dom0 makes.
REQUEST = "device/qpen"
USED_MEMORY = "device/qubes_used_mem"

# Written by qfilexchgd.
REPLY = "qubes_qpen_reply"
BLOCK_SOURCE = "qubes_blocksrc"
TRANSACTION_SEQ = "qubes_transaction_seq"
VIEW_ONLY = "qubes_view_only"
DOCUMENTS = "qubes_documents"

DISPOSABLE_TYPE = b"DisposableVM"
"""What :data:`VM_TYPE` holds in a DisposableVM."""


def home(domain: DomainId) -> str:
    """The absolute path below which the relative paths of ``domain`` lie."""
    return f"{DOMAINS}/{int(domain)}"


def absolute(domain: DomainId, key: str) -> str:
    """The absolute path of one of the keys above, for ``domain``."""
    return f"{home(domain)}/{key}"


def document(seq: int) -> str:
    """The key in an asker's home that tells what becomes of its document ``seq``: a :class:`~qfilexchg.protocol.stages.Stage`."""
    return f"{DOCUMENTS}/{seq}"


def writable_by(domain: DomainId) -> tuple[str, str]:
    """Permissions of a node that dom0 owns and ``domain`` may read and write."""
    return ("n0", f"b{int(domain)}")


def readable_by(domain: DomainId) -> tuple[str, str]:
    """Permissions of a node that dom0 owns and ``domain`` may only read."""
    return ("n0", f"r{int(domain)}")
