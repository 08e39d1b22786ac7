"""The QEMU platform: one process a VM, and a store of our own."""
