"""A worker and a gateway with no model behind them, to test what the cluster does with them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from baton.protos.errors import ModelLoadError
from baton.protos.types import Member, WorkerLoad
from baton.router.scaling_signals import Demand


class PlaceholderWorker:
    def __init__(self, config: Any) -> None:
        self.config = config
        self.failure: BaseException | None = None

    async def start(self) -> Member:
        self._server = await asyncio.start_server(self._serve, self.config.host, self.config.port)
        port = self._server.sockets[0].getsockname()[1]
        return Member(
            worker_id=self.config.worker_id,
            incarnation=self.config.incarnation,
            role=self.config.engine.role,
            address=f"{self.config.host}:{port}",
            model=self.config.model_name,
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def load(self) -> WorkerLoad:
        return WorkerLoad(total_blocks=100, free_blocks=40)

    async def drain(self, grace_s: float) -> None:
        await asyncio.sleep(0)

    async def close(self) -> None:
        self._server.close()
        await self._server.wait_closed()


class PlaceholderGateway:
    """Answers 200 to anything once the directory has listed a decode worker."""

    def __init__(self, config: Any, directory: Any, gateway_id: str) -> None:
        self._config = config
        self._directory = directory

    async def start(self) -> None:
        gateway = self._config.gateway
        self._server = await asyncio.start_server(self._serve, gateway.host, gateway.http_port)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        members = await self._directory.members()
        status = "200 OK" if any(m.role == "decode" for m in members) else "503 Unavailable"
        writer.write(
            f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
        )
        await writer.drain()
        writer.close()

    async def close(self) -> None:
        self._server.close()
        await self._server.wait_closed()

    def check_health(self) -> None:
        return None

    async def demand(self) -> Demand:
        return Demand()

    def http_url(self, host: str) -> str:
        return f"http://{host}:{self._server.sockets[0].getsockname()[1]}"

    def grpc_address(self, host: str) -> str:
        return ""


class FlaggedWorker(PlaceholderWorker):
    """Its engine fails once the file `flag` exists, and only for the worker that is named in it."""

    def __init__(self, flag: Path, config: Any) -> None:
        super().__init__(config)
        self._flag = flag

    async def start(self) -> Member:
        member = await super().start()
        self._watch = asyncio.create_task(self._fail_when_told())
        return member

    async def _fail_when_told(self) -> None:
        while self.failure is None:
            await asyncio.sleep(0.1)
            if self._flag.exists() and self._flag.read_text() == self.config.worker_id:
                self.failure = RuntimeError("told to fail")


class UnloadableWorker(PlaceholderWorker):
    """Refuses its model."""

    async def start(self) -> Member:
        raise ModelLoadError("tensor lm_head.weight is missing", param="lm_head.weight")
