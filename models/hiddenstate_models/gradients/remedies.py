"""What to try against a gradient that vanishes or explodes, by the switches of the train command."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from hiddenstate_models.gradients.measurement import Measurement
from hiddenstate_models.gradients.words import number, share, steps

Kind = Literal["vanish", "explode", "live"]

_GATED = ("lstm", "gru")
_CLIPPING = ("clip_norm", "clip_value", "clip_adaptive")
_PLENTY = 0.1


@dataclass(frozen=True)
class Subject:
    """The network measured."""

    name: str
    description: str
    """What it is, for people: "LSTM, 256 + 256 units, trained"."""
    cell: str
    horizon: int
    """How many steps back it is to look."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What it was or is to be trained with, by the names of the train command's flags, as far as it is known."""


@dataclass(frozen=True)
class Remedy:
    """Something to try."""

    switch: str
    """Of the train command."""
    why: str


def suggest(kind: Kind, subject: Subject, measurement: Measurement) -> list[Remedy]:
    """The remedies that fit the cell, leaving out what is in use already; best first."""
    finders = {"vanish": _against_vanishing, "explode": _against_explosion, "live": _for_more}
    return [Remedy(*found) for found in finders[kind](subject, measurement)]


def _against_vanishing(subject: Subject, _: Measurement) -> Iterator[tuple[str, str]]:
    start = subject.settings.get("initialisation", "default")
    if subject.cell in _GATED:
        if start != "chrono":
            yield (
                f"--initialisation chrono --t-max {subject.horizon}",
                f"Gates start out keeping what they hold for up to {steps(subject.horizon)} (Tallec & Ollivier, 2018).",
            )
    else:
        yield (
            "--cell gru",
            "Gates let a state pass unchanged, and its gradient with it (Cho et al., 2014); an LSTM does so too.",
        )
        if subject.cell == "rnn-tanh":
            yield (
                "--cell rnn-relu --initialisation identity",
                "Units that copy their state until they learn otherwise, without a tanh that shrinks gradients "
                "(Le et al., 2015).",
            )
        if start not in ("orthogonal", "default"):
            yield "--initialisation orthogonal", "Recurrent weights that keep lengths (Saxe et al., 2014)."
    if not subject.settings.get("gradient_regulariser"):
        yield (
            "--gradient-regulariser 1",
            "Penalises steps that shorten a gradient on its way back (Pascanu et al., 2013).",
        )


def _against_explosion(subject: Subject, measurement: Measurement) -> Iterator[tuple[str, str]]:
    norms = measurement.norms
    if not any(subject.settings.get(name) for name in _CLIPPING):
        bound = number(norms.median) if norms.updates else "1"
        yield (
            f"--clip-norm {bound}",
            "Shortens the gradient of an update that would throw the weights far off (Pascanu et al., 2013). "
            "It makes no update longer, so it costs nothing where there is nothing to cut.",
        )
    if subject.settings.get("initialisation") in ("uniform",) or subject.cell == "rnn-relu":
        yield "--initialisation orthogonal", "Recurrent weights that keep lengths (Saxe et al., 2014)."
    if subject.cell not in _GATED:
        yield "--cell lstm", "Its state grows by sums, not by products (Hochreiter & Schmidhuber, 1997)."
    rate = subject.settings.get("learning_rate")
    if rate:
        yield f"--learning-rate {rate / 4:.2g}", "A quarter of it, if the loss jumps in spite of clipping."
    if not subject.settings.get("gradient_regulariser"):
        yield (
            "--gradient-regulariser 1",
            "Penalises steps that lengthen a gradient on its way back (Pascanu et al., 2013).",
        )


def _for_more(subject: Subject, measurement: Measurement) -> Iterator[tuple[str, str]]:
    whole, norms = measurement.whole, measurement.norms
    k1, k2 = subject.settings.get("k1"), subject.settings.get("k2")
    if norms.updates and norms.clipped > 0.5 and subject.settings.get("clip_norm"):
        yield (
            f"--clip-norm {number(norms.median)}",
            f"{share(norms.clipped)} of the updates were clipped: clipping stands in for the learning rate.",
        )
    if norms.updates and norms.spikes and not any(subject.settings.get(name) for name in _CLIPPING):
        yield (
            f"--clip-norm {number(2 * norms.median)}",
            f"{norms.spikes:,} updates had ten times the usual norm.",
        )
    if k1 and k2 and k2 == subject.horizon and whole.steps > 2 * k2 and whole.left(2 * k2) > _PLENTY:
        yield (
            f"--k2 {2 * k2}",
            f"{steps(2 * k2)} back, {share(whole.left(2 * k2))} of the gradient is still there, and training cuts it "
            f"off at {k2}.",
        )
