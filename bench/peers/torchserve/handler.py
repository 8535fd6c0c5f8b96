"""What TorchServe's worker runs: sessions by sequence id. The sequence batcher forms the batches."""

import json
import os
from pathlib import Path
from typing import Any

from bench.peers.next_word import Sessions

_sessions = Sessions(Path(os.environ["NEXT_WORD_BUNDLE"]))


def handle(data: list[dict[str, bytes]] | None, context: Any) -> list[bytes]:
    """One token of each session of the batch -> answers. Called without data when the worker starts."""
    if not data:
        return []
    ids = [context.get_sequence_id(place) for place in range(len(data))]
    predictions = _sessions.observe(ids, [int.from_bytes(one["data"], "little") for one in data])
    return [json.dumps(prediction._asdict()).encode() for prediction in predictions]
