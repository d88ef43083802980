"""The classic select() tutorial's server, kept as it is taught: the program that echod must not be.

Run as a script it prints its port and serves until it dies. Its defects are the point, so none is repaired:
    it dies when any peer resets; it believes that send() sends everything; it throws the queue away when the client
    half-closes; its queues have no bound; each turn looks at every connection.
`chunk` is the size of a read. With the tutorial's 1,024 a short send hides behind the kernel's low-water mark, and
shows as soon as somebody reads more at a time.
"""

from __future__ import annotations

import queue
import select
import socket
import sys


def serve(chunk: int) -> None:  # all in one function, as it is taught
    """Echo for ever, or until the first accident."""
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    server.setblocking(False)
    server.bind(("127.0.0.1", 0))
    if chunk > 1024:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # inherited: each larger send is a short one
    server.listen(1024)
    print(server.getsockname()[1], flush=True)  # noqa: T201
    inputs = [server]
    outputs: list[socket.socket] = []
    messages: dict[socket.socket, queue.Queue[bytes]] = {}

    def forget(peer: socket.socket) -> None:
        if peer in outputs:
            outputs.remove(peer)
        inputs.remove(peer)
        peer.close()
        del messages[peer]

    while inputs:
        readable, writable, exceptional = select.select(inputs, outputs, inputs)
        for ready in readable:
            if ready is server:
                peer, _ = server.accept()
                peer.setblocking(False)
                inputs.append(peer)
                messages[peer] = queue.Queue()
            elif data := ready.recv(chunk):
                messages[ready].put(data)
                if ready not in outputs:
                    outputs.append(ready)
            else:
                if ready in writable:
                    writable.remove(ready)
                forget(ready)
        for ready in writable:
            try:
                message = messages[ready].get_nowait()
            except queue.Empty:
                outputs.remove(ready)
            else:
                ready.send(message)
        for broken in exceptional:
            forget(broken)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
