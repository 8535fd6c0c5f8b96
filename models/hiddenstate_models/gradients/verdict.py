"""What a measurement means, in plain words, and what to try."""

from dataclasses import dataclass

from hiddenstate_models.gradients.measurement import Measurement
from hiddenstate_models.gradients.remedies import Kind, Remedy, Subject, suggest
from hiddenstate_models.gradients.survival import Survival
from hiddenstate_models.gradients.words import number, share, steps, times

LEAST = 0.01
"""A gradient of which less is left where the network is to look back to has vanished."""
MOST = 100.0
"""A gradient that grows so many times, in a tenth of the cases at least, explodes."""
_MOSTLY = 0.5


@dataclass(frozen=True)
class Verdict:
    """What a measurement means."""

    kind: Kind
    headline: str
    evidence: list[str]
    """The numbers behind it, a sentence each."""
    remedies: list[Remedy]
    """Best first."""


@dataclass(frozen=True)
class Findings:
    """Everything a report tells."""

    subject: Subject
    measurement: Measurement
    verdict: Verdict


def judge(subject: Subject, measurement: Measurement) -> Findings:
    """Whether the gradient vanishes, explodes or lives within the subject's horizon, why, and which remedy to try."""
    whole = measurement.whole
    horizon = min(subject.horizon, whole.steps)
    left, growth = whole.left(horizon), max(whole.high)
    kind: Kind
    where = steps(whole.high.index(growth) + 1)
    if not growth < MOST:
        often = "in one case of ten " if whole.median[whole.high.index(growth)] < MOST else ""
        kind, headline = "explode", f"The gradient explodes: {where} back it has {often}grown {times(growth)}."
    elif left < LEAST:
        kind, headline = "vanish", f"The gradient vanishes: {steps(horizon)} back, {share(left)} of it is left."
    else:
        kind, headline = "live", f"The gradient lives: {steps(horizon)} back, {share(left)} of it is left."
    remedies = suggest(kind, subject, measurement)
    return Findings(subject, measurement, Verdict(kind, headline, _evidence(subject, measurement), remedies))


def _evidence(subject: Subject, measurement: Measurement) -> list[str]:
    sentences = [_survival(measurement.whole)]
    if measurement.whole.steps < subject.horizon:
        sentences.append(
            f"No document is long enough to look {steps(subject.horizon)} back; "
            f"{steps(measurement.whole.steps)} were measured."
        )
    sentences += [
        f"Layer {i}: a step's Jacobian has spectral radius {number(one.radius)} and stretches a gradient by "
        f"{number(one.largest)} at most (medians over {len(one.steps)} steps, {one.size} x {one.size} entries)."
        for i, one in enumerate(measurement.spectra, 1)
    ]
    sentences += [
        f"Layer {gate.layer}: its {gate.name} gates are {state} {share(often)} of the time."
        for gate in measurement.gates
        for state, often in (("shut", gate.shut), ("wide open", gate.open))
        if often > _MOSTLY
    ]
    norms = measurement.norms
    if norms.updates:
        sentences.append(
            f"In training, the norm of the whole gradient was {number(norms.median)} (median of {len(norms.updates):,} "
            f"updates) and at most {number(max(norms.before))}; {norms.spikes:,} updates had ten times the median or "
            f"more, and clipping shortened {share(norms.clipped)} of them all."
        )
    return sentences


def _survival(whole: Survival) -> str:
    if whole.factor >= 1:
        return f"In the long run a step back multiplies it by {number(whole.factor)}: it does not shrink."
    parts = []
    for words, reach in (("half of it", whole.reach(0.5)), ("99 % of it", whole.reach(0.01))):
        if reach is None:
            parts.append(f"{share(whole.median[-1])} is left {steps(whole.steps)} back, as far as was measured")
            break
        parts.append(f"{words} is gone {steps(reach + 1)} back")
    known = ", ".join(parts)
    return (
        f"{known[0].upper()}{known[1:]}; in the long run a step multiplies it by {number(whole.factor)}, "
        f"which halves it every {number(whole.half_life)} steps."
    )
