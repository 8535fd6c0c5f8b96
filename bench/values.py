"""What a step of the shipped next-value model costs beside the barest graph of its cells: `python -m bench.values`.

The barest graph is the model's GRU and head, seven features in and three numbers out, in ONNX Runtime: without scaling,
surprise, distribution or arena. All take turns; CPU, the best of many rounds.
"""

import time
from collections.abc import Callable, Mapping

import numpy as np
import onnxruntime
from onnx import ModelProto, TensorProto, helper, numpy_helper
from rich.console import Console
from rich.markdown import Markdown
from safetensors.numpy import load_file

from bench.engine import random_inputs
from bench.report import table, verdict
from hiddenstate_models.bundle import WEIGHTS_FILE
from hiddenstate_server import logs
from hiddenstate_server.runtimes import FloatArray
from hiddenstate_server.settings import load
from hiddenstate_server.stepping.arena import Arena
from hiddenstate_server.stepping.engine import Engine
from hiddenstate_server.versions.repository import LoadedModel, load_models

SESSIONS = 4096
ALONE, MANY = 1, 1024
ROUNDS, ROWS_A_ROUND = 20, 40_000
MOST_STEPS_A_ROUND = 500
MOST_MICROSECONDS, LEAST_SHARE = 40.0, 0.8


def barest_graph(weights: Mapping[str, FloatArray]) -> ModelProto:
    """`x [n, features], h [n, units] -> y [n, outputs], after [n, units]` of a GRU's and a head's weights."""
    layer = "cells.layers.0."
    matrix_x, matrix_h = weights[layer + "weight_ih_l0"], weights[layer + "weight_hh_l0"]
    bias_x, bias_h = weights[layer + "bias_ih_l0"], weights[layer + "bias_hh_l0"]
    units, gates = matrix_h.shape[1], slice(2 * matrix_h.shape[1])
    candidate = slice(2 * units, None)
    constants = {
        "gates_x": matrix_x[gates],
        "gates_h": matrix_h[gates],
        "gates_bias": bias_x[gates] + bias_h[gates],
        "candidate_x": matrix_x[candidate],
        "candidate_h": matrix_h[candidate],
        "bias_x": bias_x[candidate],
        "bias_h": bias_h[candidate],
        "head": weights["head.weight"],
        "head_bias": weights["head.bias"],
    }
    nodes = [
        helper.make_node("Gemm", ["x", "gates_x", "gates_bias"], ["from_x"], transB=1),
        helper.make_node("Gemm", ["h", "gates_h", "from_x"], ["closed"], transB=1),
        helper.make_node("Sigmoid", ["closed"], ["gates"]),
        helper.make_node("Split", ["gates"], ["reset", "update"], axis=1, num_outputs=2),
        helper.make_node("Gemm", ["x", "candidate_x", "bias_x"], ["new_x"], transB=1),
        helper.make_node("Gemm", ["h", "candidate_h", "bias_h"], ["new_h"], transB=1),
        helper.make_node("Mul", ["reset", "new_h"], ["kept"]),
        helper.make_node("Add", ["new_x", "kept"], ["affine"]),
        helper.make_node("Tanh", ["affine"], ["new"]),
        helper.make_node("Sub", ["h", "new"], ["difference"]),
        helper.make_node("Mul", ["update", "difference"], ["change"]),
        helper.make_node("Add", ["new", "change"], ["after"]),
        helper.make_node("Gemm", ["after", "head", "head_bias"], ["y"], transB=1),
    ]
    shapes = {"x": matrix_x.shape[1], "h": units, "y": len(weights["head.bias"]), "after": units}
    x, h, y, after = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in shapes.items()
    )
    initializers = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "barest", [x, h], [y, after], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def session_of(model: ModelProto) -> onnxruntime.InferenceSession:
    """With one thread, as the server's."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def costs(model: LoadedModel, weights: Mapping[str, FloatArray], batch: int, rounds: int = ROUNDS) -> dict[str, float]:
    """Microseconds of CPU of a step of `batch` rows: the barest graph's, the whole graph's, and the engine's with its
    arena, in which the rows of a batch lie anywhere.
    """
    session = session_of(barest_graph(weights))
    sizes = [value.shape[1] for value in session.get_inputs()]
    random = np.random.default_rng(0)
    x, h = (random.normal(0, 0.5, (batch, size)).astype(np.float32) for size in sizes)
    engine = Engine(model.runtime, Arena(SESSIONS, *model.runtime.initial()), batch, 0)
    rows = random.permutation(engine.arena.allocate(SESSIONS))[:batch]
    inputs = random_inputs(model, batch)
    engine.step(rows, inputs)
    states = engine.arena.states[rows]
    ways: dict[str, Callable[[], object]] = {
        "barest graph": lambda: session.run(["y", "after"], {"x": x, "h": h}),
        "whole graph": lambda: model.runtime.step(inputs, states),
        "engine": lambda: engine.step(rows, inputs),
    }
    steps = min(MOST_STEPS_A_ROUND, ROWS_A_ROUND // batch)
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            begun = time.thread_time()
            for _ in range(steps):
                way()
            best[name] = min(best[name], (time.thread_time() - begun) / steps * 1e6)
    return best


def main() -> None:
    """Measures both batch sizes and prints what they should be."""
    logs.configure("console", "warning")
    settings = load(["--max-batch", "16"])
    (model,) = (model for model in load_models(settings) if model.info.name == "next-value")
    weights = load_file(settings.model_folder / model.info.name / model.info.version / WEIGHTS_FILE)
    alone, many = costs(model, weights, ALONE), costs(model, weights, MANY)
    rows = [
        [f"{batch:,}", name, f"{microseconds:,.1f}", f"{batch / microseconds * 1e6:,.0f}"]
        for batch, found in ((ALONE, alone), (MANY, many))
        for name, microseconds in found.items()
    ]
    Console().print(Markdown(table(["rows", "what", "CPU us a step", "rows/s"], rows)))
    share, fixed = many["barest graph"] / many["engine"], alone["engine"]
    of_graph = many["whole graph"] / many["engine"]
    fast, cheap = verdict(share >= LEAST_SHARE), verdict(fixed <= MOST_MICROSECONDS)
    judged = [
        ["1 row: the engine, us", f"{fixed:.1f}", f"<= {MOST_MICROSECONDS:g}", cheap],
        ["1,024 rows: the barest graph's time / the engine's", f"{share:.2f}", f">= {LEAST_SHARE}", fast],
        ["1,024 rows: the whole graph's time / the engine's", f"{of_graph:.2f}", "", ""],
    ]
    Console().print(Markdown(table(["what", "measured", "target", "met"], judged)))


if __name__ == "__main__":
    main()
