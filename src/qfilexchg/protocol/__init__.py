"""What both sides of the wall agree on: names, keys, requests. Pure: no I/O, no clock.

The VM side imports this at every udev event, often under emulation, so nothing here imports ``enum``, ``re``, ``typing`` or
``dataclasses``: together they cost more than all else that a VM tool does before its first request.
"""
