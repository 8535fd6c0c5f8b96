"""Prometheus metrics. The hot path appends arrays; they are folded into histograms in bulk."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, start_http_server
from prometheus_client.metrics import MetricWrapperBase

from hiddenstate_server.errors import ServerError, StartError
from hiddenstate_server.settings import Settings

SECONDS = (
    50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0
)  # fmt: skip
ROWS = tuple(float(2**power) for power in range(0, 15))
BYTES = tuple(float(2**power) for power in range(8, 24, 2))
GaugeMode = Literal["livesum", "livemax"]
_FOLD_AT = 4096

_Family = TypeVar("_Family", bound=MetricWrapperBase)


class BulkHistogram(Histogram):
    """A histogram that takes many observations at once."""

    def observe_many(self, values: NDArray[np.float64]) -> None:
        """Adds all `values` at the cost of one per touched bucket."""
        buckets = np.searchsorted(self._upper_bounds, values)
        counts = np.bincount(buckets, minlength=len(self._upper_bounds))
        for bucket in np.flatnonzero(counts).tolist():
            self._buckets[bucket].inc(int(counts[bucket]))
        self._sum.inc(float(values.sum()))


class BulkSummary(Summary):
    """A sum and a count that take many observations at once."""

    def observe_many(self, values: NDArray[np.floating[Any]]) -> None:
        """Adds all `values`."""
        self._count.inc(len(values))
        self._sum.inc(float(values.sum(dtype=np.float64)))


class Tally:
    """Values on their way into one histogram."""

    def __init__(self, histogram: BulkHistogram) -> None:
        self._histogram = histogram
        self._arrays: list[NDArray[np.float64]] = []
        self._scalars: list[float] = []
        self._size = 0

    def add(self, values: NDArray[np.float64]) -> None:
        """Adds an array."""
        self._arrays.append(values)
        self._size += len(values)
        if self._size >= _FOLD_AT:
            self.flush()

    def add_one(self, value: float) -> None:
        """Adds one value."""
        self._scalars.append(value)
        if len(self._scalars) >= _FOLD_AT:
            self.flush()

    def flush(self) -> int:
        """Folds everything into the histogram; returns how many values."""
        values = np.concatenate([*self._arrays, np.array(self._scalars, np.float64)])
        self._arrays, self._scalars, self._size = [], [], 0
        if len(values):
            self._histogram.observe_many(values)
        return len(values)


class ModelMetrics:
    """The metrics of one model."""

    def __init__(self, metrics: Metrics, model: str, version: str, task: str, runtime: str) -> None:
        labels = (model, version)
        self._metrics = metrics
        self._labels = labels
        self._info = metrics.model_info.labels(*labels, task, runtime)
        self._info.set(1)
        self._queue_wait = Tally(metrics.queue_wait.labels(*labels))
        self._step_compute = Tally(metrics.step_compute.labels(*labels))
        self._latency = Tally(metrics.latency.labels(*labels))
        self._batch_size = Tally(metrics.batch_size.labels(*labels))
        self._observations = metrics.observations.labels(*labels)
        self._predictions = metrics.predictions.labels(*labels)
        self._opened = {
            how: metrics.opened.labels(*labels, how) for how in ("created", "resumed", "forked", "restored", "rewarmed")
        }
        self._ended = {how: metrics.ended.labels(*labels, how) for how in ("closed", "expired", "evicted", "rewarmed")}
        self.live = metrics.live.labels(*labels)
        self.rows_used = metrics.rows_used.labels(*labels)
        self.rows_free = metrics.rows_free.labels(*labels)
        self._generated = metrics.generated.labels(*labels)
        self._run_observations = metrics.run_observations.labels(*labels)
        self._replayed = metrics.replayed.labels(*labels)
        self._compared = {role: metrics.shadow_surprise.labels(*labels, role) for role in ("primary", "shadow")}
        self._snapshot_bytes = metrics.snapshot_bytes.labels(*labels)
        self._stepped = 0
        self._answered = 0

    def step_started(self, now: float, received: NDArray[np.float64]) -> float:
        """Notes how long a batch waited; returns the start of its step."""
        self._queue_wait.add(now - received)
        return time.perf_counter()

    def step_finished(self, start: float, rows: int) -> None:
        """Notes a step of `rows` rows."""
        self._step_compute.add_one(time.perf_counter() - start)
        self._batch_size.add_one(rows)
        self._stepped += rows

    def run_finished(self, start: float, count: int) -> None:
        """Notes a run of `count` observations of one row."""
        self._step_compute.add_one(time.perf_counter() - start)
        self._run_observations.inc(count)
        self._stepped += count

    def generated(self, rows: int) -> None:
        """Notes words, or values of paths, of continuations."""
        self._generated.inc(rows)

    def replayed(self, rows: int) -> None:
        """Notes observations fed again."""
        self._replayed.inc(rows)

    def compared(self, role: str, surprises: NDArray[np.float32]) -> None:
        """Notes surprise [n] of sessions that have a shadow, or of shadows."""
        known = surprises[np.isfinite(surprises)]
        self._compared[role].observe_many(known)

    def observed(self, latencies: NDArray[np.float64] | float) -> None:
        """Notes answers handed to the transport, seconds since their receipt."""
        if isinstance(latencies, float):
            self._latency.add_one(latencies)
            self._answered += 1
        else:
            self._latency.add(latencies)
            self._answered += len(latencies)

    def fault(self, error: ServerError) -> None:
        """Counts an error."""
        self._metrics.fault(error)

    def opened(self, how: str, count: int) -> None:
        """Counts sessions opened."""
        self._opened[how].inc(count)

    def exported(self, sizes: NDArray[np.float64]) -> None:
        """Notes snapshots made, in bytes."""
        self._snapshot_bytes.observe_many(sizes)

    def ended(self, how: str, count: int) -> None:
        """Counts sessions closed, expired or evicted."""
        self._ended[how].inc(count)

    def flush(self, sessions: int, used: int, free: int) -> None:
        """Brings what gathered, and the sessions and rows used and free, to Prometheus."""
        for tally in (self._queue_wait, self._step_compute, self._latency, self._batch_size):
            tally.flush()
        self._observations.inc(self._stepped)
        self._predictions.inc(self._answered)
        self._stepped = self._answered = 0
        self.live.set(sessions)
        self.rows_used.set(used)
        self.rows_free.set(free)

    def close(self) -> None:
        """The model is served no more."""
        self.flush(0, 0, 0)
        self._info.set(0)
        self._metrics.forget(*self._labels)


class StoreMetrics:
    """The metrics of the state store, and of where sessions are."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str, mode: GaugeMode = "livesum") -> Gauge:
            return Gauge(name, text, labels, registry=registry, multiprocess_mode=mode)

        self._sessions = gauge("hiddenstate_sessions", "Sessions in rows of the arena, or packed in memory.", "place")
        self._stored = gauge("hiddenstate_stored_sessions", "Live sessions in the store, in all.", mode="livemax")
        self._evictions = counter("hiddenstate_evictions_total", "Sessions moved out of the arena.", "reason")
        self._restores = counter("hiddenstate_restores_total", "Sessions brought back into the arena.", "source")
        self._restore_seconds = BulkHistogram(
            "hiddenstate_restore_seconds", "Frames that waited for the store.", buckets=SECONDS, registry=registry
        )
        self._lag_steps = gauge("hiddenstate_durable_lag_steps", "Observations applied that the store does not have.")
        self._lag_seconds = gauge(
            "hiddenstate_durable_lag_seconds", "Age of the oldest change that the store does not have.", mode="livemax"
        )
        self._errors = counter("hiddenstate_store_errors_total", "Calls of the store that failed.", "call")
        self._failing = gauge("hiddenstate_store_failing", "1 while the store fails.", mode="livemax")
        self._written = counter("hiddenstate_store_records_total", "Records written to the store.")
        self._batch = BulkHistogram(
            "hiddenstate_store_batch_rows", "Records written together.", buckets=ROWS, registry=registry
        )
        self._write_seconds = BulkHistogram(
            "hiddenstate_store_write_seconds", "One write to the store.", buckets=SECONDS, registry=registry
        )

    def evicted(self, reason: str, count: int) -> None:
        """Counts sessions moved out of the arena."""
        self._evictions.labels(reason).inc(count)

    def restored(self, source: str, count: int) -> None:
        """Counts sessions brought back, from memory or the store."""
        self._restores.labels(source).inc(count)

    def waited(self, seconds: float) -> None:
        """Notes a frame that waited for the store."""
        self._restore_seconds.observe(seconds)

    def wrote(self, records: int, seconds: float) -> None:
        """Notes a write."""
        self._written.inc(records)
        self._batch.observe(records)
        self._write_seconds.observe(seconds)

    def failed(self, call: str) -> None:
        """Counts a call that failed."""
        self._errors.labels(call).inc()
        self._failing.set(1)

    def works(self) -> None:
        """The store works again."""
        self._failing.set(0)

    def flush(self, places: Mapping[str, int], stored: int, lag_steps: int, lag_seconds: float) -> None:
        """Brings how many sessions are where, and how far the store is behind, to Prometheus."""
        for place, count in places.items():
            self._sessions.labels(place).set(count)
        self._stored.set(stored)
        self._lag_steps.set(lag_steps)
        self._lag_seconds.set(lag_seconds)


class Metrics:
    """All metrics of one process, in a registry of their own."""

    def __init__(self, version: str) -> None:
        self.registry = CollectorRegistry()
        self._by_model: list[MetricWrapperBase] = []
        model = ("model", "version")

        def kept(family: _Family, labels: tuple[str, ...]) -> _Family:
            if labels[:2] == model:
                self._by_model.append(family)
            return family

        def histogram(name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> BulkHistogram:
            return kept(BulkHistogram(name, text, labels, buckets=buckets, registry=self.registry), labels)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return kept(Counter(name, text, labels, registry=self.registry), labels)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return kept(Gauge(name, text, labels, registry=self.registry, multiprocess_mode="livesum"), labels)

        self.queue_wait = histogram("hiddenstate_queue_wait_seconds", "Receipt to start of the step.", model, SECONDS)
        self.step_compute = histogram("hiddenstate_step_compute_seconds", "One batched step.", model, SECONDS)
        self.latency = histogram(
            "hiddenstate_observation_latency_seconds",
            "Receipt to the answer's hand-over to the transport.",
            model,
            SECONDS,
        )
        self.batch_size = histogram("hiddenstate_batch_size_rows", "Rows stepped together.", model, ROWS)
        self.snapshot_bytes = histogram("hiddenstate_snapshot_bytes", "Bytes of a snapshot made.", model, BYTES)
        self.frame_size = histogram("hiddenstate_frame_size_rows", "Rows of an observe frame.", (), ROWS)
        self.observations = counter("hiddenstate_observations_total", "Observations applied.", *model)
        self.replayed = counter("hiddenstate_replayed_total", "Observations fed again, to rewind or re-warm.", *model)
        self.run_observations = counter(
            "hiddenstate_run_observations_total", "Observations taken in runs, many of one session at once.", *model
        )
        self.generated = counter("hiddenstate_generated_steps_total", "Steps of continuations, by path.", *model)
        self.generating = gauge("hiddenstate_generating", "Continuations now.")
        self.predictions = counter("hiddenstate_predictions_total", "Predictions handed to the transport.", *model)
        self.integrity_failures = counter(
            "hiddenstate_integrity_failures_total", "Checks of the server's memory that failed; none should."
        )
        self.errors = counter("hiddenstate_errors_total", "Errors answered, by reason.", "reason")
        self.opened = counter("hiddenstate_sessions_opened_total", "Sessions opened, by how.", *model, "how")
        self.ended = counter("hiddenstate_sessions_ended_total", "Sessions ended.", *model, "reason")
        self.shadow_surprise = kept(
            BulkSummary(
                "hiddenstate_shadow_surprise_nats",
                "Surprise of sessions that have a shadow, and of their shadows, an observation.",
                (*model, "role"),
                registry=self.registry,
            ),
            (*model, "role"),
        )
        self.live = gauge("hiddenstate_live_sessions", "Sessions now.", *model)
        self.rows_used = gauge("hiddenstate_arena_rows_used", "Arena rows held by sessions.", *model)
        self.rows_free = gauge("hiddenstate_arena_rows_free", "Arena rows free.", *model)
        self.build_info = gauge("hiddenstate_build_info", "1 for each process of this version.", "version")
        self.model_info = gauge(
            "hiddenstate_model_info", "1 for each process serving the model.", *model, "task", "runtime"
        )
        self.build_info.labels(version).set(1)
        self.store = StoreMetrics(self.registry)
        self._frame_size = Tally(self.frame_size)
        self._errors: defaultdict[str, int] = defaultdict(int)

    def model(self, name: str, version: str, task: str, runtime: str) -> ModelMetrics:
        """The metrics of a model."""
        return ModelMetrics(self, name, version, task, runtime)

    def forget(self, name: str, version: str) -> None:
        """Drops what has the labels of this model."""
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            return  # the files that processes share keep every label they ever had
        for family in self._by_model:
            family.remove_by_labels({"model": name, "version": version})

    def frame(self, rows: int) -> None:
        """Notes an observe frame."""
        self._frame_size.add_one(rows)

    def fault(self, error: ServerError) -> None:
        """Counts an error."""
        self._errors[error.reason] += 1

    def flush(self) -> None:
        """Brings what gathered to Prometheus."""
        self._frame_size.flush()
        for reason, count in self._errors.items():
            self.errors.labels(reason).inc(count)
        self._errors.clear()


@contextmanager
def metrics_server(settings: Settings, registry: CollectorRegistry) -> Iterator[None]:
    """Serves the registry on the metrics port, in a thread, unless that is switched off."""
    if settings.metrics_port == 0:
        yield
        return
    try:
        server, thread = start_http_server(settings.metrics_port, settings.socket_host, registry)
    except OSError as error:
        raise StartError(
            f"cannot serve metrics on port {settings.metrics_port}: {error.strerror}; "
            "choose another --metrics-port, or 0 for none"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
