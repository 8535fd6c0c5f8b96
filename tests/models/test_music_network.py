import math

import numpy as np
import pytest
import torch

from hiddenstate_models.data.music import NOTES, Piece
from hiddenstate_models.networks.music import IGNORED, MusicConfig, MusicNetwork, frame_losses
from hiddenstate_models.training.music import mean_loss, music_lanes

CONFIGS = [
    MusicConfig(hidden_sizes=(7,)),
    MusicConfig(cell="gru", hidden_sizes=(6, 5), dropout=0.5),
    MusicConfig(hidden_sizes=(6, 6), projection=4, notes=12, lowest=60),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_sequence_and_steps_agree(config: MusicConfig) -> None:
    torch.manual_seed(0)
    network = MusicNetwork(config).eval()
    frames = (torch.rand(15, 3, config.notes) < 0.1).to(torch.int8)
    state = network.initial_state(3)
    with torch.no_grad():
        together, last = network(frames, state)
        for t, frame in enumerate(frames):
            alone, state = network.step(frame, state)
            torch.testing.assert_close(alone, together[t], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-6)
    assert MusicConfig.from_dict(config.to_dict()) == config


def test_the_loss_of_a_frame_is_summed_over_its_notes() -> None:
    probabilities = torch.tensor([[[0.5, 0.25, 0.9]], [[0.1, 0.1, 0.1]]])
    targets = torch.tensor([[[1, 0, 1]], [[IGNORED] * 3]], dtype=torch.int8)
    losses = frame_losses(probabilities.logit(), targets)
    expected = -(math.log(0.5) + math.log(0.75) + math.log(0.9))
    torch.testing.assert_close(losses, torch.tensor([[expected], [0.0]]))


def test_every_frame_but_a_piece_s_first_is_scored() -> None:
    """By hand: a network that says p for every note, whatever it reads, on pieces of several lengths."""
    network = MusicNetwork(MusicConfig(hidden_sizes=(2,))).eval()
    p = 0.125
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.fill_(math.log(p / (1 - p)))
    rng = np.random.default_rng(0)
    pieces = [Piece(str(n), (rng.random((n, NOTES)) < 0.05).astype(np.int8)) for n in (2, 70, 129)]
    frames = np.concatenate([piece.roll[1:] for piece in pieces]).astype(np.float64)
    by_hand = -(frames * math.log(p) + (1 - frames) * math.log(1 - p)).sum() / len(frames)
    assert mean_loss(network, pieces) == pytest.approx(by_hand, rel=1e-5)


def test_a_piece_begins_with_a_silent_frame() -> None:
    piece = Piece("scale", np.eye(NOTES, dtype=np.int8)[:5])
    (chunk,) = music_lanes([piece], lanes=1, steps=6).epoch(0)
    np.testing.assert_array_equal(chunk.inputs[:, 0], [np.zeros(NOTES), *piece.roll[:4], np.zeros(NOTES)])
    np.testing.assert_array_equal(chunk.targets[:, 0], [*piece.roll, np.full(NOTES, IGNORED)])
    assert chunk.starts.all()
