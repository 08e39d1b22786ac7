"""The tests on the other release of Debian: 13 where the host runs 12, and 12 anywhere else.

Debian 12 and 13 differ in Python, QEMU, systemd, apt, lintian and the kernel. What was tried on one of them says little of the other.

A *tree* is a minimal system of the other release, made by mmdebstrap and kept in the cache as an archive. A run unpacks it, works in
it, and deletes it. ``inside`` gives the work namespaces of its own, so all that is mounted and all that runs there ends with it.
The tree has the host's kernel, its processor and its network, so what is tried is the release's programs, not its kernel.
"""
