"""The transports under the connectors, bare: what their speed is compared with."""

from __future__ import annotations

import socket
import threading
from typing import Any, Final

import numpy as np
import torch

from baton.kvtransfer.communicator import RECEIVER, SENDER, Communicator, make_store

_TIMEOUT_S: Final = 60.0


class RawNixl:
    """A NIXL agent of its own over the same pool: one WRITE of one flat run, its polls spinning on
    the calling thread, without a notice.
    """

    def __init__(self, pool: torch.Tensor, name: str) -> None:
        from nixl_cu13._api import nixl_agent, nixl_agent_config

        self.address = pool.data_ptr()
        self.memory = "VRAM" if pool.is_cuda else "DRAM"
        config = nixl_agent_config(enable_prog_thread=False, backends=["UCX"])
        self.agent: Any = nixl_agent(name, config)
        self.agent.register_memory(pool)
        self._name = ""
        self._remote_address = 0
        self._lists: tuple[Any, Any] | None = None

    def metadata(self) -> tuple[bytes, int]:
        return self.agent.get_agent_metadata(), self.address

    def connect(self, name: str, metadata: bytes, address: int) -> None:
        self.agent.add_remote_agent(metadata)
        self._name, self._remote_address = name, address
        self.write(0, 4096)

    def prepare_blocks(self, block_bytes: int, num_local: int, num_remote: int) -> None:
        """Makes `write_blocks` possible, for pools of alike blocks."""
        here = self._list("NIXL_INIT_AGENT", self.address, block_bytes, num_local)
        self._lists = here, self._list(self._name, self._remote_address, block_bytes, num_remote)

    def write(self, offset: int, num_bytes: int) -> None:
        local = self.agent.get_xfer_descs([(self.address + offset, num_bytes, 0)], self.memory)
        remote = [(self._remote_address + offset, num_bytes, 0)]
        there = self.agent.get_xfer_descs(remote, self.memory)
        self._finish(self.agent.initialize_xfer("WRITE", local, there, self._name))

    def write_blocks(self, local: list[int], remote: list[int]) -> None:
        """One WRITE of the blocks of a push."""
        assert self._lists is not None
        order = np.argsort(np.array(local))
        here, there = (np.array(ids, dtype=np.int32)[order] for ids in (local, remote))
        self._finish(
            self.agent.make_prepped_xfer("WRITE", self._lists[0], here, self._lists[1], there)
        )

    def progress(self) -> None:
        """The receiver's part."""
        self.agent.get_new_notifs()

    def close(self) -> None:
        """NIXL frees it with the process."""

    def _finish(self, handle: Any) -> None:
        state = self.agent.transfer(handle)
        while state == "PROC":
            state = self.agent.check_xfer_state(handle)
        if state != "DONE":
            raise RuntimeError(f"raw NIXL ends with {state}")
        self.agent.release_xfer_handle(handle)

    def _list(self, agent: str, address: int, block_bytes: int, count: int) -> Any:
        runs = np.array([(address, block_bytes, 0, block_bytes, count)], dtype=np.uint64)
        return self.agent.prep_xfer_dlist(agent, runs, self.memory)


class RawStream:
    """One TCP stream into the receiver's pool, a byte back for each write: what gloo stands on.
    With a pool on a GPU, NCCL's own send of one flat run.
    """

    def __init__(self, pool: torch.Tensor, port: int) -> None:
        self._bytes = pool.view(-1).view(torch.uint8)
        self._connection = socket.create_connection(("127.0.0.1", port), _TIMEOUT_S)
        self._communicator: Communicator | None = None
        if pool.is_cuda:
            store = make_store("127.0.0.1", 0, is_master=True, timeout_s=_TIMEOUT_S)
            self._connection.sendall(f"{store.port:8d}".encode())
            self._communicator = Communicator(
                store, SENDER, host="127.0.0.1", device=pool.device, timeout_s=_TIMEOUT_S
            )

    def write(self, offset: int, num_bytes: int) -> None:
        self._connection.sendall(f"{offset:16d}{num_bytes:16d}".encode())
        flat = self._bytes[offset : offset + num_bytes]
        if self._communicator is not None:
            self._communicator.send(iter([flat]))
        else:
            self._connection.sendall(flat.numpy().data)
        if self._connection.recv(1) != b"K":
            raise RuntimeError("the receiver of the raw stream is gone")

    def close(self) -> None:
        self._connection.close()


def serve_stream(pool: torch.Tensor) -> int:
    """Receives one raw stream in a thread of its own; the port it waits at."""
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_receive, args=(listener, pool), daemon=True).start()
    port: int = listener.getsockname()[1]
    return port


def _receive(listener: socket.socket, pool: torch.Tensor) -> None:
    with listener:
        connection, _ = listener.accept()
    with connection:
        _serve(connection, pool)


def _serve(connection: socket.socket, pool: torch.Tensor) -> None:
    flat = pool.view(-1).view(torch.uint8)
    communicator: Communicator | None = None
    if pool.is_cuda:
        port = int(connection.recv(8, socket.MSG_WAITALL))
        store = make_store("127.0.0.1", port, is_master=False, timeout_s=_TIMEOUT_S)
        communicator = Communicator(
            store, RECEIVER, host="127.0.0.1", device=pool.device, timeout_s=_TIMEOUT_S
        )
    while head := connection.recv(32, socket.MSG_WAITALL):
        offset, num_bytes = int(head[:16]), int(head[16:])
        target = flat[offset : offset + num_bytes]
        if communicator is not None:
            for _ in communicator.receive(iter([target])):
                continue
        else:
            view, got = target.numpy().data, 0
            while got < num_bytes:
                got += connection.recv_into(view[got:], num_bytes - got)
        connection.sendall(b"K")
