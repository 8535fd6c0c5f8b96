"""LitServe, with sessions in a dictionary of its one worker: `python -m bench.peers.litserve.server PORT BUNDLE`."""

import sys
from pathlib import Path
from typing import Any

import litserve

from bench.peers.next_word import Sessions


class NextWord(litserve.LitAPI):
    """Observations of many sessions as one batch, of what arrived within 2 ms."""

    def __init__(self, bundle: Path) -> None:
        super().__init__(max_batch_size=64, batch_timeout=0.002, api_path="/observe")
        self._bundle = bundle

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Loads the model in the worker."""
        self._sessions = Sessions(self._bundle)

    def predict(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Questions -> answers."""
        ids, tokens = [one["session"] for one in batch], [one["token"] for one in batch]
        return [prediction._asdict() for prediction in self._sessions.observe(ids, tokens)]


if __name__ == "__main__":
    server = litserve.LitServer(NextWord(Path(sys.argv[2])), accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, generate_client_file=False, log_level="warning"
    )
