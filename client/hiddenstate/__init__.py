"""Stream observations to a hiddenstate server and get a prediction of what comes next after each.

    from hiddenstate import Client

    with Client("localhost:50051") as client, client.session("next-word") as session:
        prediction = session.observe("the")
        prediction.top          # [(word, probability), ...]
        prediction.surprise     # of "the", in nats

`AsyncClient` has the same methods, awaited.
"""

from hiddenstate.aio import AsyncClient
from hiddenstate.blocking import Fleet, Generation, Session, Watch
from hiddenstate.descriptions import Model, Place, Reloaded, SessionInfo, Task, Vocabulary
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
    SessionMoved,
    SessionNotFound,
    SessionTakenOver,
    SnapshotInvalid,
    Unavailable,
)
from hiddenstate.fleet import AsyncFleet
from hiddenstate.generation import AsyncGeneration
from hiddenstate.predictions import (
    FleetForecastPredictions,
    FleetLabelPredictions,
    FleetNotePredictions,
    FleetPredictions,
    FleetWordPredictions,
    ForecastPrediction,
    ForecastPredictions,
    GeneratedWord,
    LabelPrediction,
    LabelPredictions,
    NotePrediction,
    NotePredictions,
    Prediction,
    TaggedWord,
    ValuePrediction,
    ValuePredictions,
    WordPrediction,
    WordPredictions,
)
from hiddenstate.session import AsyncSession
from hiddenstate.sync import Client
from hiddenstate.watching import AsyncWatch

__all__ = [
    "AccessDenied",
    "AnswersLost",
    "AsyncClient",
    "AsyncFleet",
    "AsyncGeneration",
    "AsyncSession",
    "AsyncWatch",
    "Client",
    "ClientClosed",
    "DeadlineExceeded",
    "Fleet",
    "FleetForecastPredictions",
    "FleetLabelPredictions",
    "FleetNotePredictions",
    "FleetPredictions",
    "FleetWordPredictions",
    "ForecastPrediction",
    "ForecastPredictions",
    "GeneratedWord",
    "Generation",
    "HiddenstateError",
    "InvalidInput",
    "LabelPrediction",
    "LabelPredictions",
    "Model",
    "ModelNotFound",
    "NotePrediction",
    "NotePredictions",
    "Place",
    "Prediction",
    "Reloaded",
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
    "SessionMoved",
    "SessionNotFound",
    "SessionTakenOver",
    "SnapshotInvalid",
    "TaggedWord",
    "Task",
    "Unavailable",
    "ValuePrediction",
    "ValuePredictions",
    "Vocabulary",
    "Watch",
    "WordPrediction",
    "WordPredictions",
]
