"""The byte channels between a QEMU VM and its host: virtio-serial ports, by name.

A port serves one process in the VM at a time, so each kind has several: a tool takes the first free one. On Xen there is no
such port: for the store ``/dev/xen/xenbus`` takes any number of clients, and commands go over the console.
"""

PORT_FOLDER = "/dev/virtio-ports"

STORE_PORTS = ("org.qubes.xenstore", "org.qubes.xenstore.1", "org.qubes.xenstore.2", "org.qubes.xenstore.3")
"""Each is a connection of this domain to the store. The first is left to programs started by hand (``XENSTORED_PATH``)."""

RUN_PORTS = ("org.qubes.run.0", "org.qubes.run.1", "org.qubes.run.2", "org.qubes.run.3")
"""Each carries one command at a time of the person in dom0 (``qvm-run``, ``qvm-console``, ``qvm-copy-in``)."""
