"""A neighbour machine for the tests: a network namespace behind a link, with a web server and a name server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from tests import peers

HOST, NEIGHBOUR = "198.51.100.1", "198.51.100.2"  # TEST-NET-2
NAME, PAGE = "neighbour.example", b"hello from the neighbour\n"
METADATA = "169.254.169.254"
_LINK, _FAR = "mkr-near", "mkr-far"

# In the neighbour's namespace: the page on port 80 of every address, and answers to each question for an address.
SERVER = f"""
import os, socket, threading
def web():
    server = socket.create_server(("", 80))
    while True:
        peer, _ = server.accept()
        peer.recv(4096)
        peer.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n" + {PAGE!r})
        peer.close()
def names(address):
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((address, 53))
    while True:
        question, peer = server.recvfrom(512)
        head, rest = question[:2] + bytes.fromhex("81800001"), question[12:]
        end = rest.index(0) + 5
        a = rest[end - 4 : end - 2] == b"\\0\\1"
        answer = bytes.fromhex("c00c00010001000000050004") + socket.inet_aton("{NEIGHBOUR}") if a else b""
        server.sendto(head + (b"\\0\\1" if a else b"\\0\\0") + bytes(4) + rest[:end] + answer, peer)
"""


class World:
    """The neighbour, while the block lasts."""

    def __init__(self) -> None:
        self._servers: list[subprocess.Popen[bytes]] = []
        self._holder: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> World:
        ip = peers.find("ip")
        self._holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        pid = str(self._holder.pid)
        own = os.stat("/proc/self/ns/net").st_ino
        while os.stat(f"/proc/{pid}/ns/net").st_ino == own:
            pass
        for line in (
            f"link add {_LINK} type veth peer name {_FAR} netns {pid}",
            f"address add {HOST}/24 dev {_LINK}",
            f"link set {_LINK} up",
            f"route add default via {NEIGHBOUR}",
        ):
            subprocess.run([ip, *line.split()], check=True)
        for line in (f"address add {NEIGHBOUR}/24 dev {_FAR}", f"address add {METADATA}/32 dev {_FAR}",
                     f"link set {_FAR} up", "link set lo up"):  # fmt: skip
            subprocess.run(["nsenter", f"--net=/proc/{pid}/ns/net", ip, *line.split()], check=True)
        self._serve("web()", ("nsenter", f"--net=/proc/{pid}/ns/net"))
        self._serve(f"names({NEIGHBOUR!r})", ("nsenter", f"--net=/proc/{pid}/ns/net"))
        self._serve("names('127.0.0.1')", ())
        return self

    def _serve(self, call: str, wrapper: tuple[str, ...]) -> None:
        code = f"{SERVER}\nprint('ready', flush=True)\n{call}"
        server = subprocess.Popen([*wrapper, sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert server.stdout is not None
        server.stdout.readline()
        self._servers.append(server)

    def __exit__(self, *_: object) -> None:
        for process in (*self._servers, self._holder):
            assert process is not None
            process.send_signal(signal.SIGKILL)
            process.wait()
        subprocess.run([peers.find("ip"), "link", "delete", _LINK], check=False, capture_output=True)
