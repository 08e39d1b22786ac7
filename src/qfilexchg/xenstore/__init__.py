"""The xenstore protocol: its packets, two clients and a server. Knows nothing of pendrives.

    wire.py       packets and their incremental parser
    errors.py     what a client can be told
    client.py     for dom0: asyncio, many requests at once, watch events in a queue
    blocking.py   for VM tools: one thing at a time, cheap to start
    paths.py, permissions.py, tree.py, store.py   the store itself, without I/O
    server.py     qxenstored: sockets around store.py, for hosts without Xen

The protocol is docs/misc/xenstore.txt in the Xen sources; where that is silent, Xen 4.17's daemon is the reference.
"""
