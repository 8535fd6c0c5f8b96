"""BentoML, with sessions in a dictionary of its one worker: `python -m bench.peers.bentoml.server PORT BUNDLE`."""

import os
import sys
from pathlib import Path

import bentoml
from pydantic import BaseModel

from bench.peers.next_word import Sessions

BUNDLE = "NEXT_WORD_BUNDLE"


class Observation(BaseModel):
    """A question."""

    session: str
    token: int


class Answer(BaseModel):
    """As bench.peers.session.Prediction."""

    surprise: float
    top_tokens: list[int]
    top_probabilities: list[float]


@bentoml.service(workers=1)
class NextWord:
    """Observations of many sessions as one batch, whose size and delay BentoML adapts."""

    def __init__(self) -> None:
        self._sessions = Sessions(Path(os.environ[BUNDLE]))

    @bentoml.api(batchable=True, max_batch_size=64, max_latency_ms=1000)
    def observe(self, observations: list[Observation]) -> list[Answer]:
        """Questions -> answers."""
        ids, tokens = [one.session for one in observations], [one.token for one in observations]
        return [Answer(**prediction._asdict()) for prediction in self._sessions.observe(ids, tokens)]


if __name__ == "__main__":
    os.environ[BUNDLE] = sys.argv[2]
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    serve = ["-m", "bentoml", "serve", "bench.peers.bentoml.server:NextWord", "--host", "127.0.0.1", "--port"]
    os.execv(sys.executable, [sys.executable, *serve, sys.argv[1]])
