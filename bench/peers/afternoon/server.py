"""The server one writes in an afternoon: grpc.aio, a stream a session, its state in a local variable, torch.

`python -m bench.peers.afternoon.server PORT BUNDLE [--batch]`. Without --batch each message is a step of its own; with
it, observations wait up to 2 ms for others to be stepped with. A message is a token (int32); its answer has the
surprise, the five best tokens and their probabilities.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import torch
import uvloop
from torch import Tensor

from bench.peers.afternoon.messages import METHOD, SERVICE, encoded, token_of
from bench.peers.next_word import NextWord
from bench.peers.session import Prediction

MAX_BATCH = 64
MAX_DELAY_SECONDS = 0.002


class Batcher:
    """Steps what has arrived, once 2 ms have passed since the first of it or it is 64 rows."""

    def __init__(self, model: NextWord) -> None:
        self._model = model
        self._waiting: list[tuple[int, Tensor, asyncio.Future[tuple[Prediction, Tensor]]]] = []
        self._timer: asyncio.TimerHandle | None = None

    async def step(self, token: int, state: Tensor) -> tuple[Prediction, Tensor]:
        """One session's observation and state [state] -> prediction, state."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[Prediction, Tensor]] = loop.create_future()
        self._waiting.append((token, state, answer))
        if len(self._waiting) == MAX_BATCH:
            self._run()
        elif self._timer is None:
            self._timer = loop.call_later(MAX_DELAY_SECONDS, self._run)
        return await answer

    def _run(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        tokens, states, answers = zip(*self._waiting, strict=True)
        self._waiting = []
        predictions, rows = self._model.step(tokens, torch.stack(states))
        for answer, prediction, row in zip(answers, predictions, rows, strict=True):
            if not answer.done():
                # A copy: a view of the batch would keep all of it.
                answer.set_result((prediction, row.clone()))


async def serve(port: int, bundle: Path, *, batch: bool) -> None:
    """Serves until killed."""
    model = NextWord(bundle)
    batcher = Batcher(model)

    async def observe(requests: AsyncIterator[bytes], context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        state = model.initial
        async for request in requests:
            if batch:
                prediction, state = await batcher.step(token_of(request), state)
            else:
                (prediction,), states = model.step([token_of(request)], state.unsqueeze(0))
                state = states[0]
            await context.write(encoded(prediction))

    server = grpc.aio.server()
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {METHOD: grpc.stream_stream_rpc_method_handler(observe)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"localhost:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), Path(sys.argv[2]), batch="--batch" in sys.argv[3:]))
