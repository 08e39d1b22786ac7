"""What can go wrong, by whose fault.

    QfilexchgError
    ├── CallerError    the person who typed a command, or the code that called: ask for something else
    ├── VmError        a virtual machine broke the protocol: refuse it, and it alone
    ├── HostError      the host lacks something or one of its programs failed: mend the host
    └── InternalError  a promise of our own code did not hold: a defect to report

A class names one kind of failure; what failed is data in its attributes, and the sentence for the person is made in
``__str__``. The sentence says what was wrong and what to do about it. This module is also read by the VM side, which must
start fast: it imports nothing.
"""


class QfilexchgError(Exception):
    """Root of every error that this package raises on purpose."""


class CallerError(QfilexchgError):
    """The caller asked for something that cannot be."""


class VmError(QfilexchgError):
    """A virtual machine broke the protocol."""


class HostError(QfilexchgError):
    """The host lacks something, or one of its programs failed."""


class InternalError(QfilexchgError):
    """A promise of our own code did not hold."""
