"""Scores of a music network and of guesses without one on the same frames."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hiddenstate_models.baselines.notes import NoteBaseline
from hiddenstate_models.data.music import Piece
from hiddenstate_models.networks.music import IGNORED, MusicNetwork, frame_losses
from hiddenstate_models.training.music import read_through

Metrics = dict[str, float]
"""Metric -> number."""

LOSS, ACCURACY = "nats a frame", "note accuracy"


@torch.no_grad()
def network_scores(network: MusicNetwork, pieces: Sequence[Piece]) -> Metrics:
    """Negative log-likelihood a frame, summed over the notes, and accuracy.

    Every frame counts but a piece's first, as in Bai et al. (2018), long pieces for more than short ones; the state is
    carried through each piece from a fresh one. The accuracy is that of Bay et al. (2009): notes found as a share of
    those found, missed and made up, where the notes of a probability above a half are found.
    """
    network.eval()
    return _scores(
        (logits[known], targets[known])
        for logits, targets in read_through(network, pieces)
        for known in [targets[..., 0] != IGNORED]
    )


def baseline_scores(baseline: NoteBaseline, pieces: Sequence[Piece]) -> Metrics:
    """The same of a guess."""
    return _scores(
        (torch.from_numpy(baseline.predict(piece.roll)).logit(), torch.from_numpy(piece.roll[1:])) for piece in pieces
    )


def _scores(frames: Iterator[tuple[Tensor, Tensor]]) -> Metrics:
    """Of logits and targets [N, notes], bit by bit."""
    loss, count, found, wrong = 0.0, 0, 0, 0
    for logits, targets in frames:
        loss += float(frame_losses(logits, targets).sum())
        count += len(targets)
        guessed, sounding = logits > 0, targets == 1
        found += int((guessed & sounding).sum())
        wrong += int((guessed ^ sounding).sum())
    return {LOSS: loss / count, ACCURACY: found / max(found + wrong, 1)}
