"""Stream observations to a hiddenstate server and get a prediction of what comes next after each.

    from hiddenstate import Client

    with Client("localhost:50051") as client, client.session("next-word") as session:
        prediction = session.observe("the")
        prediction.top          # [(word, probability), ...]
        prediction.surprise     # of "the", in nats

`AsyncClient` has the same methods, awaited.
"""

from hiddenstate.aio import AsyncClient
from hiddenstate.descriptions import Model, SessionInfo, Task, Vocabulary
from hiddenstate.errors import (
    AccessDenied,
    AnswersLost,
    ClientClosed,
    DeadlineExceeded,
    HiddenstateError,
    InvalidInput,
    ModelNotFound,
    ResourceExhausted,
    RewindLimit,
    ServerError,
    SessionClosed,
    SessionError,
    SessionEvicted,
    SessionExists,
    SessionExpired,
    SessionLost,
    SessionNotFound,
    SessionTakenOver,
    SnapshotInvalid,
    Unavailable,
)
from hiddenstate.fleet import AsyncFleet
from hiddenstate.predictions import (
    FleetPredictions,
    FleetWordPredictions,
    Prediction,
    ValuePrediction,
    ValuePredictions,
    WordPrediction,
    WordPredictions,
)
from hiddenstate.session import AsyncSession
from hiddenstate.sync import Client, Fleet, Session

__all__ = [
    "AccessDenied",
    "AnswersLost",
    "AsyncClient",
    "AsyncFleet",
    "AsyncSession",
    "Client",
    "ClientClosed",
    "DeadlineExceeded",
    "Fleet",
    "FleetPredictions",
    "FleetWordPredictions",
    "HiddenstateError",
    "InvalidInput",
    "Model",
    "ModelNotFound",
    "Prediction",
    "ResourceExhausted",
    "RewindLimit",
    "ServerError",
    "Session",
    "SessionClosed",
    "SessionError",
    "SessionEvicted",
    "SessionExists",
    "SessionExpired",
    "SessionInfo",
    "SessionLost",
    "SessionNotFound",
    "SessionTakenOver",
    "SnapshotInvalid",
    "Task",
    "Unavailable",
    "ValuePrediction",
    "ValuePredictions",
    "Vocabulary",
    "WordPrediction",
    "WordPredictions",
]
