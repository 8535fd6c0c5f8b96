"""What a next-word step costs and how exact it is, beside ONNX Runtime's plain graph: `python -m bench.words`.

Plain is what one would export without further thought: float32, the logits of all words, LogSoftmax, TopK. It, the
bundle's float32 step and its int8 step take turns in one process and one thread; CPU time counts, and of all turns the
fastest. Then each reads the same text with states of its own, beside float64.
"""

import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from onnx import ModelProto, TensorProto

from bench.report import table
from hiddenstate_models.bundle import (
    INT8_STEP_FILE,
    STEP_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Bundle,
    WordNetwork,
    shipped_bundles,
)
from hiddenstate_models.export.graph import GraphBuilder
from hiddenstate_models.export.int8_loss import (
    K,
    Step,
    compared,
    float64_step,
    onnx_step,
    probe_lanes,
    read,
)
from hiddenstate_models.export.products import Operand, chosen_products, linear
from hiddenstate_models.export.recurrent import split_state, stack
from hiddenstate_models.export.sources import named_probe
from hiddenstate_models.export.traversal import ONE_STEP

BATCHES = (1, 16, 64, 128)
AGREEMENT = 1e-4
"""Nats by which plain's surprises may differ from those of the bundle's float32 step."""


def plain_graph(bundle: Bundle) -> ModelProto:
    """A step of the same signature as the bundle's, without anything clever after the cells."""
    graph, network = GraphBuilder(bundle.tensors), bundle.network
    assert isinstance(network, WordNetwork)
    matrix = "encoder.weight" if network.tied else "head.weight"
    sizes = network.state_size, network.kept_output_size, 1
    recurrent, kept, log_normalizer = graph.split("states", *sizes)
    state = split_state(graph, network, recurrent)
    embedded = Operand(graph.node("Gather", graph.weight("encoder.weight"), "tokens"))
    output, after = stack(graph, network, embedded, state, ONE_STEP)
    logits = linear(graph, Operand(output), matrix, graph.weight("head.bias"))
    log_probabilities = graph.node("LogSoftmax", logits, axis=1)
    best, tokens = graph.nodes("TopK", [log_probabilities, "k"], 2)
    graph.output("top_tokens", graph.node("Cast", tokens, to=TensorProto.INT32))
    graph.output("top_probabilities", graph.node("Exp", best))

    one = graph.integers(1)
    before = state[-1][0] if network.holds_output else kept
    observed = chosen_products(graph, before, matrix, "head.bias", graph.node("Unsqueeze", "tokens", one))
    graph.output("surprises", graph.node("Squeeze", graph.node("Sub", log_normalizer, observed), one))
    # The normaliser is what any logit and its log-probability differ by.
    first = graph.integers(0), graph.integers(1), one
    normalizers = graph.node("Sub", *(graph.node("Slice", x, *first) for x in (logits, log_probabilities)))
    pieces = [piece for layer in after for piece in layer] + ([] if network.holds_output else [output])
    graph.output("next_states", graph.node("Concat", *pieces, normalizers, axis=1))
    size = network.served_state_size
    return graph.model(
        {
            "tokens": (TensorProto.INT64, ["n"]),
            "states": (TensorProto.FLOAT, ["n", size]),
            "k": (TensorProto.INT64, [1]),
        },
        {
            "surprises": (TensorProto.FLOAT, ["n"]),
            "top_tokens": (TensorProto.INT32, ["n", "top"]),
            "top_probabilities": (TensorProto.FLOAT, ["n", "top"]),
            "next_states": (TensorProto.FLOAT, ["n", size]),
        },
    )


def costs(steps: Mapping[str, Step], batch: int, seconds: float, vocabulary: int, state_size: int) -> dict[str, float]:
    """Microseconds of CPU a row, of the fastest turn of each; turns of about a hundredth of the time."""
    rng = np.random.default_rng(0)
    tokens, best = rng.integers(0, vocabulary, batch), dict.fromkeys(steps, np.inf)
    states = {name: np.zeros((batch, state_size), np.float32) for name in steps}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, step in steps.items():
            states[name] = step(tokens, states[name], K)[-1]
            begun, rounds = time.process_time(), 0
            while (elapsed := time.process_time() - begun) < seconds / 100:
                step(tokens, states[name], K)
                rounds += 1
            best[name] = min(best[name], elapsed / rounds / batch * 1e6)
    return best


def report(bundle: Bundle, seconds: float, data: Sequence[str], batches: Sequence[int] = BATCHES) -> str:
    """Both tables, for `seconds` a batch size and the text that `data` names, or else one that the model writes."""
    network, settings, config = bundle.network, bundle.config.text, bundle.config
    if not isinstance(network, WordNetwork) or settings is None or not bundle.has_int8:
        raise typer.BadParameter(f"{bundle.folder} is no next-word bundle with an int8 step; export one with --int8")
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copyfile(bundle.folder / WEIGHTS_FILE, Path(scratch) / WEIGHTS_FILE)
        plain = Path(scratch) / STEP_FILE
        plain.write_bytes(plain_graph(bundle).SerializeToString())
        paths = {"plain": plain, "float32": bundle.folder / STEP_FILE, "int8": bundle.folder / INT8_STEP_FILE}
        steps = {name: onnx_step(path) for name, path in paths.items()}
    timed = {size: costs(steps, size, seconds, network.vocabulary_size, config.state_size) for size in batches}
    times = [
        [f"{name}, {size}", f"{best[name]:.1f}", f"{best['plain'] / best[name]:.2f}"]
        for size, best in timed.items()
        for name in steps
    ]
    probe = named_probe((bundle.folder / TOKENIZER_FILE).read_text(encoding="utf-8"), data) if data else None
    lanes = probe_lanes(bundle.folder / STEP_FILE, network, settings, probe)
    expected = read(float64_step(config.network, bundle.folder / WEIGHTS_FILE), lanes, network)
    label = probe.name if probe else "text generated by the model"
    found = {name: read(step, lanes, network) for name, step in steps.items()}
    difference = float(np.abs(found["plain"].surprises - found["float32"].surprises).max())
    if difference > AGREEMENT:
        raise RuntimeError(f"the plain graph is another model: its surprises differ by {difference:.1g} nats")
    losses = {name: compared(label, expected, reading) for name, reading in found.items()}
    quality = [
        [
            name,
            f"{loss.recall_at_5:.5f}",
            f"{loss.top_1_agreement:.5f}",
            f"{loss.perplexity:.3f}",
            f"{loss.normalizer_bias:+.5f}",
            f"{loss.normalizer_error:.5f}",
            f"{loss.largest_normalizer_error:.4f}",
        ]
        for name, loss in losses.items()
    ]
    header = ["step", "recall of the best 5", "of the best", "perplexity", "normaliser, bias", "rms", "largest"]
    about = losses["int8"]
    return "\n\n".join(
        (
            table(["step, rows", "CPU us a row", "times as fast as plain"], times),
            f"Beside float64, over {about.tokens:,} tokens ({label}), whose perplexity there is "
            f"{about.float64_perplexity:.3f}; errors in nats:",
            table(header, quality),
        )
    )


def main(
    model: Annotated[Path | None, typer.Option(help="A next-word bundle; without it, the shipped one.")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Text to read; may be given again. Without it, the model writes some.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="For each batch size.", min=0.01)] = 6.0,
) -> None:
    """Times a next-word step beside the plain graph, and reads text with both beside float64."""
    torch.set_num_threads(1)
    bundle = Bundle.load(model or shipped_bundles() / "next-word" / "1")
    print(report(bundle, seconds, data or []))


if __name__ == "__main__":
    typer.run(main)
