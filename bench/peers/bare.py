"""The least that an echo server in Python can do: no logs, no limits, no half-close, one buffer. `bare.py PORT`."""

from __future__ import annotations

import select
import socket
import sys


def main(port: int) -> None:
    """Serve until killed."""
    listener = socket.create_server(("127.0.0.1", port), backlog=4096)
    poller = select.epoll()
    poller.register(listener.fileno(), select.EPOLLIN)
    buffer = memoryview(bytearray(256 * 1024))
    connections: dict[int, socket.socket] = {}
    while True:
        for fd, _ in poller.poll():
            if fd == listener.fileno():
                sock, _ = listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connections[sock.fileno()] = sock
                poller.register(sock.fileno(), select.EPOLLIN)
                continue
            sock = connections[fd]
            try:
                count = sock.recv_into(buffer)
                if count:
                    sock.sendall(buffer[:count])
            except OSError:  # the load leaves with messages on their way
                count = 0
            if not count:
                del connections[fd]
                sock.close()


if __name__ == "__main__":
    main(int(sys.argv[1]))
