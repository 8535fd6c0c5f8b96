"""The card of a bundle: what a person should know before using it, in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hiddenstate_models.bundle import ForecastNetwork, LabelNetwork, Network, NoteNetwork, ValueNetwork, WordNetwork

_TASKS = {
    "next-word": (
        "Reads a text word by word and predicts the next word: the most probable ones with their "
        "probabilities over the full vocabulary, and how surprising each word was, in nats."
    ),
    "next-value": (
        "Reads a series value by value and predicts the next one as a distribution, in the series' own unit: "
        "a location, a scale, and how surprising each value was, in nats. Values are scaled per session while "
        "they arrive, so a series needs no preparation; missing values (NaN) are allowed."
    ),
    "forecasting": (
        "Reads a series value by value and predicts the next several ones after each, every one as a distribution in "
        "the series' own unit, and how surprising each value was, in nats. Values are scaled per session while they "
        "arrive, so a series needs no preparation; missing values (NaN) are allowed."
    ),
    "next-value, fixed": (
        "Reads a series value by value and predicts the next one as a Gaussian of constant width, in the series' own "
        "unit: a location, a scale, and how surprising each value was, in nats. Values are normalised by a mean and a "
        "unit that never change, so a series has to be of the scale the model was made for; a missing value (NaN) "
        "counts as the one before it."
    ),
    "classification": (
        "Reads a text word by word and says after every word what it takes the whole text for: the probability of "
        "each label."
    ),
    "tagging": (
        "Reads a sentence word by word and labels every word: the probability of each label, for the word as many "
        "observations ago as it looks ahead. The end token, sent so many times, ends a sentence."
    ),
    "music": (
        "Reads a piece frame by frame, which notes sound and which do not, and predicts the next frame: the "
        "probability of every note, and how surprising each frame was, in nats, summed over the notes."
    ),
}
_POOLINGS = {"max": "maximum", "mean": "mean"}
_LIMITS = {
    "next-word": (
        "It knows the words of its vocabulary and counts all others as `<unk>`. It repeats what its training text "
        "says, mistakes and prejudices included, and knows no facts. It is meant for suggesting and scoring words, "
        "not for writing text on its own."
    ),
    "next-value": (
        "It looks one step ahead. The first dozens of values of a session serve to learn its level and spread, "
        "so early predictions are wide. The interval is calibrated over many series, not for each one, and a "
        "surprise says that a value is unusual, not that something is broken."
    ),
    "forecasting": (
        "Each step of a forecast has a distribution of its own: how steps go together is not told. It needs to have "
        "seen a season or two before it can make use of it. The intervals are calibrated over many series, not for "
        "each one."
    ),
    "next-value, fixed": (
        "It looks one step ahead, and is told how wrong it usually is: the interval is as wide in quiet hours as in "
        "wild ones, and a surprise says that a value is unusual, not that something is broken."
    ),
    "classification": (
        "It knows the words and the kind of text it learnt from, and repeats that text's prejudices. Its verdict is "
        "about a text as a whole: what it says halfway is a guess from the beginning. Probabilities are not calibrated."
    ),
    "tagging": (
        "It knows the words and the kind of text it learnt from; names of other places and times it finds less often. "
        "Labels of neighbouring words are found one by one and need not make whole names."
    ),
    "music": (
        "Notes of a frame are independent of each other given what came before, so a chord that it writes may have "
        "a note too many or too few. A note that sounds on and one that is struck again look alike. It knows the "
        "kind of music that it learnt from, and no other."
    ),
}


def card(config: Mapping[str, Any], network: Network) -> str:
    """card.md for the fields of config.json."""
    fixed = isinstance(network, ValueNetwork) and network.scaling == "fixed"
    task = config["task"] + (", fixed" if fixed else "")
    sections = [
        f"# {config['name']}, version {config['version']}",
        _TASKS[task],
        _network(config, network),
        _data(config["training"]),
        _scores(config["scores"]),
        _int8(config["scores"].get("int8")),
        _command(config["training"]),
        f"## Limits\n\n{_LIMITS[task]}",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; every column but the first is aligned right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _network(config: Mapping[str, Any], network: Network) -> str:
    facts = [network.description, f"{config['parameters']:,} parameters"]
    if isinstance(network, WordNetwork):
        facts.append(f"{network.vocabulary_size:,} words")
        facts.append("output layer tied to the embedding" if network.tied else "output layer of its own")
    elif isinstance(network, LabelNetwork):
        facts.append(f"{network.vocabulary_size:,} words")
        facts.append(f"{network.labels} labels: {', '.join(config['labels']['names'])}")
        if config["labels"]["look_ahead"]:
            facts.append(f"looks {config['labels']['look_ahead']} word(s) ahead")
        if network.pooling != "last":
            facts.append(f"labels the {_POOLINGS[network.pooling]} of all outputs so far")
    elif isinstance(network, NoteNetwork):
        facts.append(f"{network.notes} notes from MIDI number {network.lowest} on")
    else:
        names = {"student-t": "Student's t", "gaussian": "a Gaussian"}
        facts.append(f"{network.columns} input column(s), {len(network.targets)} predicted")
        facts.append(f"predicts {names[network.distribution]} distribution")
        if isinstance(network, ForecastNetwork):
            seasons = " and ".join(map(str, network.seasons)) or "no"
            facts.append(f"{network.horizon} steps ahead, seasons of {seasons} steps")
    facts.append(f"{config['state_size'] * 4:,} bytes of state per session")
    return "## Network\n\n" + "\n".join(f"- {fact}" for fact in facts)


def _data(training: Mapping[str, Any]) -> str:
    lines = [f"- {line}" for line in training.get("data", [])]
    if licence := training.get("licence"):
        lines.append(f"- Licence of these weights: {licence}")
    return "## Data and licence\n\n" + "\n".join(lines) if lines else ""


def _scores(scores: Mapping[str, Any]) -> str:
    """One table per split: models and baselines down, metrics across."""
    parts = ["## Scores"]
    for split, rows in scores.items():
        if split == "int8":
            continue
        metrics = list(dict.fromkeys(metric for row in rows.values() for metric in row))
        cells = [[name, *(_number(row.get(metric)) for metric in metrics)] for name, row in rows.items()]
        parts.append(f"### {split}\n\n{table(['', *metrics], cells)}")
    return "\n\n".join(parts) if len(parts) > 1 else ""


def _int8(loss: Mapping[str, Any] | None) -> str:
    if loss is None:
        return ""
    return (
        "## Int8\n\n"
        "`step.int8.onnx` finds candidates for the next word in 8 bits, and computes their probabilities, and the "
        f"surprise of what came, in float32. Over {loss['tokens']:,} tokens ({loss['probe']}) its perplexity is "
        f"{loss['perplexity']:.3f} where float64 has {loss['float64_perplexity']:.3f}; {loss['recall_at_5']:.3%} of "
        "float64's five best words are among its own, and the best word is the same "
        f"{loss['top_1_agreement']:.3%} of the time. What the other words add to the normaliser is as found in 8 bits: "
        f"every log-probability is wrong by {loss['normalizer_bias']:+.5f} nats on average, "
        f"{loss['normalizer_error']:.5f} as a root mean square, and {loss['largest_normalizer_error']:.3f} at most."
    )


def _command(training: Mapping[str, Any]) -> str:
    command = training.get("command")
    return f"## Training command\n\n```\n{command}\n```" if command else ""


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
