"""Sessions out to snapshots, and in again on any server that has the same key and bundle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hiddenstate_proto import hiddenstate_pb2 as pb
from hiddenstate_server import errors
from hiddenstate_server.runtimes import RowArray
from hiddenstate_server.sessions.residence import model_for
from hiddenstate_server.sessions.snapshots import Snapshot
from hiddenstate_server.stepping.directory import tenant_of
from hiddenstate_server.stepping.model import ServedModel
from hiddenstate_server.stepping.records import RecordInvalid
from hiddenstate_server.stepping.scheduler import Batch
from hiddenstate_server.store import Record

if TYPE_CHECKING:
    from hiddenstate_server.sessions.host import Host


def export(host: Host, model: ServedModel, batch: Batch, _now: float) -> None:
    """Answers the exports whose turn it is."""
    table = model.table
    for row, snapshot in zip(batch.rows.tolist(), sealed(host, model, batch.rows), strict=True):
        exported = pb.Exported(handle=int(table.handle[row]), step=int(table.applied[row]), snapshot=snapshot)
        host.streams[int(table.stream[row])].exported(exported)


def sealed(host: Host, model: ServedModel, rows: RowArray) -> list[bytes]:
    """Snapshots of rows."""
    table, info = model.table, model.info
    snapshots = [
        host.sealer.seal(
            Snapshot(
                tenant_of(table.keys[row]),
                info.name,
                info.version,
                info.digest,
                int(table.applied[row]),
                float(table.lease[row]),
                table.labels[row],
                body,
            )
        )
        for row, body in zip(rows.tolist(), model.pack(rows), strict=True)
    ]
    model.metrics.exported(np.array(list(map(len, snapshots)), np.float64))
    return snapshots


def sealed_record(host: Host, record: Record) -> bytes:
    """A snapshot of a session that has no row here."""
    model = model_for(host, record)
    snapshot = host.sealer.seal(
        Snapshot(
            record.tenant,
            record.model,
            record.version,
            model.info.digest,
            record.step,
            record.lease,
            record.labels,
            record.body,
        )
    )
    model.metrics.exported(np.array([len(snapshot)], np.float64))
    return snapshot


def unsealed(host: Host, tenant: str, data: bytes) -> tuple[ServedModel, Snapshot]:
    """A tenant's snapshot and the model that can go on with it; SnapshotInvalid or ModelNotFound."""
    snapshot = host.sealer.open(data)
    if snapshot.tenant != tenant:
        raise errors.SnapshotInvalid("the snapshot belongs to another tenant")
    model = host.model(snapshot.model, snapshot.version)
    if model.info.digest != snapshot.bundle:
        raise errors.SnapshotInvalid(
            f"the snapshot is of another model that was called {model.info}; restore it where that one is served"
        )
    try:
        model.packer.check(snapshot.body)
    except RecordInvalid as error:
        raise errors.SnapshotInvalid(f"the snapshot does not fit {model.info}: {error}") from error
    return model, snapshot


def fill(
    host: Host, model: ServedModel, rows: RowArray, snapshots: Sequence[Snapshot], lease: float | None, labels: str
) -> None:
    """Brings new sessions to where snapshots were taken; `lease` and `labels` override theirs where there are any."""
    table, longest = model.table, host.limits.max_idle_timeout
    table.applied[rows] = table.accepted[rows] = [snapshot.step for snapshot in snapshots]
    table.lease[rows] = [min(snapshot.lease, longest) if lease is None else lease for snapshot in snapshots]
    for row, snapshot in zip(rows.tolist(), snapshots, strict=True):
        table.labels[row] = labels or snapshot.labels
    model.unpack([snapshot.body for snapshot in snapshots], rows)
