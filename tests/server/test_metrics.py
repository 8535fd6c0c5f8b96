"""Bulk counting equals counting one by one."""

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from hiddenstate_server.metrics import SECONDS, BulkHistogram, Metrics, Tally


def test_bulk_equals_one_by_one() -> None:
    values = np.concatenate([np.random.default_rng(0).exponential(0.01, 5000), SECONDS, [0.0, 99.0]])
    one_by_one, bulk = CollectorRegistry(), CollectorRegistry()
    histogram = Histogram("latency_seconds", "Help.", buckets=SECONDS, registry=one_by_one)
    for value in values:
        histogram.observe(value)
    tally = Tally(BulkHistogram("latency_seconds", "Help.", buckets=SECONDS, registry=bulk))
    for part in np.array_split(values[:-1], 7):
        tally.add(part)
    tally.add_one(values[-1])
    tally.flush()

    def counts(registry: CollectorRegistry) -> list[bytes]:
        return [line for line in generate_latest(registry).splitlines() if b"_bucket" in line or b"_count" in line]

    assert counts(bulk) == counts(one_by_one)
    assert bulk.get_sample_value("latency_seconds_sum") == pytest.approx(values.sum())


def test_names_follow_the_conventions() -> None:
    for family in Metrics("1").registry.collect():
        assert family.name.startswith("hiddenstate_")
        assert family.documentation.endswith(".")
        if family.type == "histogram":
            assert family.name.endswith(("_seconds", "_rows", "_bytes"))
