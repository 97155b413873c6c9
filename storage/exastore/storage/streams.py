"""A bidirectional stream whose answers come in any order, with bounded memory."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import TypeVar

from exastore.storage.flow import ByteBudget

Request = TypeVar("Request")
Answer = TypeVar("Answer")


async def answer_stream(
    requests: AsyncIterable[Request],
    handle: Callable[[Request], Awaitable[Answer]],
    cost_bytes: Callable[[Request], int],
    limit_bytes: int,
) -> AsyncIterator[Answer]:
    """Handle every request in a task of its own and yield the answers as they come.

    No further request is taken from the stream while `limit_bytes` are in flight, so gRPC's flow
    control makes the sender wait. A request counts until its answer was handed over. `handle` must
    not raise.
    """
    budget = ByteBudget(limit_bytes)
    answers: asyncio.Queue[tuple[Answer, int] | None] = asyncio.Queue()
    tasks: set[asyncio.Task[None]] = set()

    async def answer_one(request: Request, cost: int) -> None:
        answers.put_nowait((await handle(request), cost))

    async def pull() -> None:
        try:
            async for request in requests:
                cost = cost_bytes(request)
                await budget.take(cost)
                task = asyncio.create_task(answer_one(request, cost))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)
        finally:
            answers.put_nowait(None)

    puller = asyncio.create_task(pull())
    try:
        while (item := await answers.get()) is not None:
            yield item[0]
            budget.give(item[1])
    finally:
        puller.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(puller, *tasks, return_exceptions=True)
