"""Loaded by every Python with this folder on PYTHONPATH: only loopback can be reached, and each try is written down.

The log (FEDBONE_OFFLINE_LOG) also shows tries whose error the program swallowed.
"""

import os
import socket

LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0")
OWN_ADDRESS_PROBE = "10.255.255.255"  # FLARE connects a datagram socket to it, which sends nothing, to learn its own
LET_THROUGH = (*LOOPBACK, OWN_ADDRESS_PROBE, "/", "\0")


def _refuse(address: object) -> None:
    host = address[0] if isinstance(address, tuple) else address
    host = host.decode() if isinstance(host, bytes) else host
    if host is None or not isinstance(host, str) or host == "" or host.startswith(LET_THROUGH):
        return
    with open(os.environ["FEDBONE_OFFLINE_LOG"], "a", encoding="utf-8") as log:
        log.write(f"{host}\n")
    raise OSError(f"offline test: {host} must not be reached")


def _guarded(function, position: int):
    def call(*arguments, **options):
        if len(arguments) > position:
            _refuse(arguments[position])
        return function(*arguments, **options)

    return call


class _Socket(socket.socket):
    connect = _guarded(socket.socket.connect, 1)
    connect_ex = _guarded(socket.socket.connect_ex, 1)

    def sendto(self, data, *rest):
        _refuse(rest[-1])
        return super().sendto(data, *rest)


socket.socket = _Socket
socket.getaddrinfo = _guarded(socket.getaddrinfo, 0)
socket.gethostbyname = _guarded(socket.gethostbyname, 0)
