"""The models in the box, served: they are small, they load, and they predict."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from hiddenstate import Client
from hiddenstate_models.bundle import Bundle, shipped_bundles

MOON = (
    "We choose to go to the moon in this decade and do the other things, not because they are easy, "
    "but because they are hard."
)
DEMO = Path(__file__).parents[2] / "deploy" / "demo"


def test_they_are_small_and_say_how_they_were_made() -> None:
    folders = [shipped_bundles() / "next-word" / "1", shipped_bundles() / "next-value" / "1"]
    assert sum(file.stat().st_size for folder in folders for file in folder.iterdir()) < 15e6
    for folder in folders:
        bundle = Bundle.load(folder)
        card = (folder / "card.md").read_text()
        assert f"hiddenstate-models train {bundle.config.task} --data" in card
        assert "Data and licence" in card
        assert "Scores" in card


def test_next_word_knows_how_a_booking_goes_on(shipped: str) -> None:
    with Client(shipped) as client, client.session("next-word") as session:
        prediction = session.observe("Hi, I would like to make a reservation at a")
        words = [word for word, _ in prediction.top]
        probabilities = [probability for _, probability in prediction.top]
        assert "restaurant" in words
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) <= 1


def test_next_word_is_far_better_than_chance_on_a_text_it_never_saw(shipped: str) -> None:
    with Client(shipped) as client, client.session("next-word") as session:
        vocabulary = session.model.vocabulary
        assert vocabulary is not None
        words = vocabulary.split(MOON)
        surprises = session.observe_many(words).surprise
    assert len(surprises) == len(words)
    assert math.exp(surprises.mean()) < len(vocabulary.words) / 20


def test_next_word_remembers_what_was_said_long_ago(shipped: str) -> None:
    """The same last words, another beginning: another prediction. That is what a state is for."""
    tail = "ok , that sounds good . can you tell me the"
    with Client(shipped) as client:
        tops = []
        for topic in ("I want to see a movie at the theater .", "I need a rental car with a driver in San Diego ."):
            with client.session("next-word") as session:
                session.observe(topic)
                tops.append(dict(session.observe(tail).top))
    distance = sum(abs(tops[0].get(word, 0) - tops[1].get(word, 0)) for word in {*tops[0], *tops[1]})
    assert distance > 0.05


def test_next_value_beats_persistence_on_a_sensor_it_never_saw(shipped: str) -> None:
    with (DEMO / "weather.csv").open() as file:
        values = np.array([float(row[-1]) for row in list(csv.reader(file))[1:]])
    with Client(shipped) as client, client.session("next-value") as session:
        predictions = session.observe_many(values)
    warm = slice(48, -1)
    lower, upper = predictions.interval(0.9)
    following = values[1:]
    error = np.abs(predictions.mean[:-1] - following)[48:].mean()
    persistence = np.abs(np.diff(values))[48:].mean()
    covered = ((lower[:-1] <= following) & (following <= upper[:-1]))[48:].mean()
    assert error < 0.95 * persistence
    assert 0.8 < covered < 0.98
    assert np.isfinite(predictions.surprise[warm]).all()


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_next_value_does_not_care_about_the_unit(shipped: str, scale: float) -> None:
    values = np.sin(np.arange(100) / 4) + 10
    with Client(shipped) as client, client.session("next-value") as one, client.session("next-value") as other:
        plain, scaled = one.observe_many(values), other.observe_many(values * scale)
    np.testing.assert_allclose(scaled.mean[20:] / scale, plain.mean[20:], rtol=1e-4)


def test_next_value_takes_missing_values(shipped: str) -> None:
    with Client(shipped) as client, client.session("next-value") as session:
        for value in (20.0, 20.5, None, 21.0, float("nan")):
            prediction = session.observe(value)
        assert math.isnan(prediction.surprise)
        assert math.isfinite(prediction.mean)
        assert prediction.step == 5
