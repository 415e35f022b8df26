"""Connections of a load test: as many as there are requests at once, none more, each with a client of its own."""

from __future__ import annotations

import asyncio

from openautoglm.bench.connections import Connections
from openautoglm.bench.endpoint import Endpoint
from openautoglm.bench.patience import Patience

NUM_CLIENTS = 300


class Service:
    """A server that answers all of a round at once, when the last of it has asked; it counts connections."""

    def __init__(self) -> None:
        self.num_connections = self.num_waiting = self.num_closed = 0
        self.all_here = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                self.num_waiting += 1
                if self.num_waiting == NUM_CLIENTS:
                    self.all_here.set()
                await self.all_here.wait()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        except asyncio.IncompleteReadError:
            writer.close()
            await writer.wait_closed()
            self.num_closed += 1


def test_each_request_has_a_client_whose_connection_is_kept_for_the_next_and_closed_at_the_end() -> None:
    async def rounds() -> list[int]:
        service = Service()
        server = await asyncio.start_server(service.serve, "127.0.0.1", 0, backlog=NUM_CLIENTS)
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        opened: list[int] = []
        async with server:
            async with Connections(Endpoint(url=address, model="m"), Patience()) as connections:

                async def ask() -> int:
                    async with connections.lend() as client:
                        assert (await client.get(address)).text == "ok"
                        return id(client)

                for _ in range(3):
                    service.num_waiting = 0
                    service.all_here.clear()
                    clients = await asyncio.gather(*(ask() for _ in range(NUM_CLIENTS)))
                    # One that many shared would look through all its connections for each request.
                    assert len(set(clients)) == NUM_CLIENTS
                    opened.append(service.num_connections)
                assert service.num_closed == 0
            while service.num_closed < NUM_CLIENTS:
                await asyncio.sleep(0.01)
        return opened

    assert asyncio.run(rounds()) == [NUM_CLIENTS] * 3
