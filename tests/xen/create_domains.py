"""Runs in dom0: makes and destroys empty domains until Xen's counter of domain ids stands at its end. Prints the last id.

Xen gives ids in turn, up to 32751, and begins again at the lowest that is free. Nobody but Xen learns of a domain that libxenctrl
alone has made. The structure begins as that of Xen 4.17 and 4.20 (xen/include/public/domctl.h). Later fields differ, and all are 0.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sys

LAST = 32751


class CreateDomain(ctypes.Structure):
    _fields_ = (
        ("ssidref", ctypes.c_uint32),
        ("handle", ctypes.c_uint8 * 16),
        ("flags", ctypes.c_uint32),
        ("iommu_opts", ctypes.c_uint32),
        ("max_vcpus", ctypes.c_uint32),
        ("max_evtchn_port", ctypes.c_uint32),
        ("max_grant_frames", ctypes.c_int32),
        ("max_maptrack_frames", ctypes.c_int32),
        ("grant_opts", ctypes.c_uint32),
        ("rest", ctypes.c_uint8 * 64),
    )


def main() -> int:
    library = ctypes.CDLL(ctypes.util.find_library("xenctrl"), use_errno=True)
    library.xc_interface_open.restype = ctypes.c_void_p
    library.xc_domain_create.argtypes = (ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32), ctypes.POINTER(CreateDomain))
    library.xc_domain_destroy.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
    xen = library.xc_interface_open(None, None, 0)
    wanted = CreateDomain(max_vcpus=1, max_evtchn_port=1023, max_grant_frames=1, max_maptrack_frames=0, grant_opts=1)
    domain = ctypes.c_uint32()
    limit = int(sys.argv[1]) if len(sys.argv) > 1 else LAST
    for _ in range(limit):
        domain.value = 0
        if library.xc_domain_create(xen, ctypes.byref(domain), ctypes.byref(wanted)):
            print(f"cannot make a domain: errno {ctypes.get_errno()}", file=sys.stderr)
            return 1
        if library.xc_domain_destroy(xen, domain.value):
            print(f"cannot destroy domain {domain.value}: errno {ctypes.get_errno()}", file=sys.stderr)
            return 1
        if domain.value >= LAST:
            break
    print(domain.value)
    return 0


if __name__ == "__main__":
    sys.exit(main())
