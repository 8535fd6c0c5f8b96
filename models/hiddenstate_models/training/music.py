"""Learning to predict the next frame of a piece."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from hiddenstate_models.baselines.notes import NoteBaseline
from hiddenstate_models.data import sources
from hiddenstate_models.data.lanes import Chunk, Lanes
from hiddenstate_models.data.music import Piece, has_parts, read_pieces, transposed
from hiddenstate_models.errors import ConfigurationError
from hiddenstate_models.networks.music import IGNORED, MusicConfig, MusicNetwork, frame_losses
from hiddenstate_models.training.cell_options import CellFlags, with_default
from hiddenstate_models.training.holding_out import held_out
from hiddenstate_models.training.options import TrainingOptions, option
from hiddenstate_models.training.recipe import Prepared, Recipe, Told

_EVALUATION_LANES = 64
_EVALUATION_STEPS = 64


@dataclass(frozen=True, kw_only=True)
class MusicOptions(CellFlags):
    """Settings of a music run: how the pieces are read, and the network."""

    frames_per_beat: int = option(2, "MIDI files: frames in a quarter note.")
    transpose: int = option(0, "Learn every piece in other keys too: moved by up to so many semitones down and up.")
    dropout: float = with_default("dropout", 0.3)

    def __post_init__(self) -> None:
        if self.frames_per_beat < 1 or self.transpose < 0:
            raise ConfigurationError("frames-per-beat must be at least 1 and transpose at least 0")

    def network(self) -> MusicConfig:
        """The network's configuration."""
        return MusicConfig(**self.cells())


class MusicTask:
    """Every frame of a piece from the ones before it, by negative log-likelihood summed over the notes."""

    def __init__(
        self, training: Sequence[Piece], validation: Sequence[Piece], options: TrainingOptions, music: MusicOptions
    ) -> None:
        pieces = transposed(training, music.transpose)
        self.lanes = music_lanes(
            pieces, lanes=options.lanes, steps=options.k1, seed=options.seed, vary=options.sample_k1
        )
        self._validation = validation

    def loss(self, _network: nn.Module, outputs: Tensor, targets: Tensor, _epoch: int) -> Tensor:
        """Summed nats of target frames [T, B, notes] given logits [T, B, notes]."""
        return frame_losses(outputs, targets).sum()

    def count(self, chunk: Chunk) -> int:
        """Frames to predict."""
        return int((chunk.targets[..., 0] != IGNORED).sum())

    def details(self, _loss: float) -> dict[str, float]:
        """Nothing beside the loss, which is nats a frame."""
        return {}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Mean nats a frame over the frames that follow another one."""
        return {"loss": mean_loss(cast(MusicNetwork, network), self._validation)}


def music_lanes(
    pieces: Sequence[Piece],
    *,
    lanes: int,
    steps: int,
    seed: int | None = None,
    whole: bool = False,
    vary: bool = False,
) -> Lanes:
    """Pieces as lanes: a silent frame and all but the last one are the inputs, the frames after them the targets."""
    documents = [(np.concatenate([np.zeros_like(piece.roll[:1]), piece.roll[:-1]]), piece.roll) for piece in pieces]
    return Lanes(documents, lanes=lanes, steps=steps, padding=IGNORED, seed=seed, whole=whole, vary=vary)


def read_through(network: MusicNetwork, pieces: Sequence[Piece]) -> Iterator[tuple[Tensor, Tensor]]:
    """Reads whole pieces, each from a fresh state: logits and targets [T, B, notes], bit by bit.

    A piece's first frame is IGNORED, as Bai et al. (2018) count: what is scored follows an observed frame.
    """
    lanes = min(_EVALUATION_LANES, len(pieces))
    device = next(network.parameters()).device
    state = network.initial_state(lanes)
    for chunk in music_lanes(pieces, lanes=lanes, steps=_EVALUATION_STEPS, whole=True).epoch(0):
        starts, targets = torch.from_numpy(chunk.starts).to(device), torch.from_numpy(chunk.targets).to(device)
        state = state.masked_fill(starts.unsqueeze(1), 0)
        logits, state = network(torch.from_numpy(chunk.inputs).to(device), state)
        targets[0, starts] = IGNORED
        yield logits, targets


@torch.no_grad()
def mean_loss(network: MusicNetwork, pieces: Sequence[Piece]) -> float:
    """Mean negative log-likelihood in nats a frame, summed over the notes, over all frames but each piece's first."""
    total, count = 0.0, 0
    for logits, targets in read_through(network, pieces):
        total += float(frame_losses(logits, targets).sum())
        count += int((targets[..., 0] != IGNORED).sum())
    return total / count


def _prepare(told: Told[MusicOptions], _resumed: Path | None) -> Prepared:
    music, valid = told.settings, told.valid
    if not valid and all(has_parts(path) for path in sources.files(told.data)):
        valid = told.data
    training, validation = pieces_of(told.data, valid, music.frames_per_beat)
    config = music.network()
    network = MusicNetwork(config)
    network.expect(torch.from_numpy(NoteBaseline.frequencies(training).probabilities[0]))
    task = MusicTask(training, validation, told.training, music)
    facts = {
        "pieces": len(training),
        "frames an epoch": task.lanes.steps_per_epoch,
        "validation pieces": len(validation),
    }
    return Prepared(network, config.to_dict(), task, facts, read={"validation": valid})


def pieces_of(data: list[str], valid: list[str], frames_per_beat: int) -> tuple[list[Piece], list[Piece]]:
    """Pieces to learn from and to validate on: the parts of the files, files of their own, or every twentieth piece."""
    unseen = [path for path in sources.files(valid) if not has_parts(path)]
    paths = [path for path in sources.files(data) if path not in unseen]
    pieces = read_pieces(paths, "train", frames_per_beat=frames_per_beat)
    if valid:
        return pieces, read_pieces(sources.files(valid), "valid", frames_per_beat=frames_per_beat)
    return held_out(pieces, "piece", "name validation files with --valid")


MUSIC = Recipe(
    task="music",
    settings=MusicOptions,
    group="music",
    unit="frames",
    prepare=_prepare,
    help="""Train a music model on piano rolls or MIDI files.

    Example: hiddenstate-models train music --data 'tunes/*.mid' --transpose 5 --out runs/tunes
    """,
    reads="MIDI files or piano rolls (.mat with traindata and validdata) to learn from; repeatable.",
    holds_out="Files to validate on; without it, the validdata of .mat files, of others every 20th piece.",
)
