"""qfilexchg: isolated virtual machines on one computer exchange files without trusting each other."""

__version__ = "0.1.0"
