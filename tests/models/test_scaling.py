import math

import numpy as np
import pytest
import torch

from hiddenstate_models.limits import LARGEST_VALUE
from hiddenstate_models.networks.scaling import PRIOR_STEP, OnlineScaling, Scaled

NAN = math.nan


def scale(*rows: float, columns: int = 1) -> Scaled:
    """Scales the rows of one fresh session."""
    scaling = OnlineScaling(columns)
    values = torch.tensor(rows, dtype=torch.float64).view(-1, 1, columns)
    scaled, _ = scaling.forward(values, torch.zeros(1, scaling.state_size))
    return scaled


def noise(rows: int, seed: int = 0) -> list[float]:
    return [float(x) for x in np.random.default_rng(seed).normal(size=rows)]


def test_sequence_and_steps_agree() -> None:
    scaling = OnlineScaling(2)
    values = torch.randn(50, 3, 2, dtype=torch.float64).cumsum(0)
    values[torch.rand(50, 3, 2) < 0.2] = NAN
    state = torch.zeros(3, scaling.state_size)
    together, last = scaling(values, state)
    for t, row in enumerate(values):
        alone, state = scaling.step(row, state)
        for field, expected in zip(alone, together, strict=True):
            torch.testing.assert_close(field, expected[t], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(state, last, rtol=0, atol=0)


def test_columns_do_not_touch_each_other() -> None:
    pair = scale(*[x for row in zip(noise(30), noise(30, seed=1), strict=True) for x in row], columns=2)
    alone = scale(*noise(30))
    np.testing.assert_array_equal(pair.features[:, 0, 0::2], alone.features[:, 0])
    np.testing.assert_array_equal(pair.units[:, 0, 0], alone.units[:, 0, 0])


@pytest.mark.parametrize(("factor", "offset"), [(1e-12, 0.0), (1e12, 0.0), (-3.0, 0.0), (1.0, 1e6), (1e3, -5e7)])
def test_features_have_no_unit(factor: float, offset: float) -> None:
    plain = noise(300)
    expected, changed = scale(*plain), scale(*(factor * x + offset for x in plain))
    flips = torch.ones(expected.features.shape[-1])
    flips[:3] = math.copysign(1, factor)
    torch.testing.assert_close(changed.features[1:], expected.features[1:] * flips, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(changed.units[1:], expected.units[1:] * abs(factor), rtol=1e-4, atol=0)


def test_a_counter_near_two_billion_is_seen_to_move_by_one() -> None:
    scaled = scale(*(1.7e9 + i for i in range(10)))
    np.testing.assert_array_equal(scaled.anchors[:, 0, 0], [1.7e9 + i for i in range(10)])
    np.testing.assert_array_equal(scaled.units[1:, 0, 0], np.ones(9))


def test_a_missing_value_changes_nothing_but_its_flag() -> None:
    before, (missing, after) = noise(20), (NAN, 0.7)
    with_gap, without = scale(*before, missing, after), scale(*before, after)
    assert with_gap.features[20, 0, -1] == 1
    assert (with_gap.features[:20, 0, -1] == 0).all()
    assert with_gap.anchors[20] == before[-1]
    for field, expected in zip(with_gap, without, strict=True):
        np.testing.assert_array_equal(field[-1], expected[-1])


def test_there_is_no_anchor_before_the_first_value() -> None:
    scaled = scale(NAN, NAN, 4.0)
    np.testing.assert_array_equal(scaled.anchors[:, 0, 0], [NAN, NAN, 4])
    assert scaled.features.isfinite().all()


def test_units_follow_the_steps() -> None:
    steps = np.array(noise(3000))
    values = np.cumsum(np.concatenate([steps[:1500], 20 * steps[1500:]]))
    units = scale(*values).units[:, 0, 0]
    typical = np.abs(steps).mean()
    assert units[1499] == pytest.approx(typical, rel=0.2)
    assert units[2999] == pytest.approx(20 * typical, rel=0.2)


def test_standing_still_keeps_the_unit() -> None:
    moving = [float(i % 2) for i in range(100)]
    units = scale(*moving, *[1.0] * 1000).units
    assert units[-1] == units[99] == pytest.approx(1)


def test_before_the_first_move_the_unit_is_a_share_of_the_value() -> None:
    assert scale(40.0, 40.0).units[-1] == pytest.approx(40 * PRIOR_STEP)
    assert scale(0.0, 0.0).units[-1] == pytest.approx(PRIOR_STEP)


def test_one_glitch_does_not_blind_the_session() -> None:
    calm = [20 + x for x in noise(500)]
    units = scale(*calm, 65535.0, *calm[:20]).units[:, 0, 0]
    assert units[-1] < 2 * units[499]


@pytest.mark.parametrize("extreme", [0.0, 1e-300, LARGEST_VALUE, -LARGEST_VALUE, 5e-324])
def test_extremes_stay_finite(extreme: float) -> None:
    scaled = scale(extreme, 1.0, extreme, extreme, -1e-30, 1e30, extreme)
    for field in scaled:
        assert field.isfinite().all()
    assert (scaled.units > 0).all()
    assert scaled.features.abs().max() < 20
