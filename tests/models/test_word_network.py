"""A word network with Jordan's cells: taught by the words that came, and by itself."""

import pytest
import torch

from hiddenstate_models.errors import ConfigurationError
from hiddenstate_models.networks.words import NextWordConfig, NextWordNetwork

CONFIG = NextWordConfig(
    cell="jordan", hidden_sizes=(7,), projection=4, embedding_size=4, vocabulary_size=11, teacher_forcing=True
)


@pytest.mark.parametrize("training", [False, True])
def test_is_fed_the_words_that_came_in_training_and_its_own_outputs_when_served(training: bool) -> None:
    torch.manual_seed(0)
    network = NextWordNetwork(CONFIG).train(training)
    tokens, state = torch.randint(0, 11, (6, 3)), torch.randn(3, network.state_size)
    outputs, last = network(tokens, state)
    for t, expected in enumerate(outputs):
        output, state = network.step(tokens[t], state)
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
        if training and t + 1 < len(tokens):
            state = network.encoder.weight[tokens[t + 1]]
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-5)


def test_only_a_jordan_network_can_be_taught() -> None:
    with pytest.raises(ConfigurationError, match="teacher forcing is for Jordan networks; the cell is gru"):
        NextWordConfig(cell="gru", vocabulary_size=11, teacher_forcing=True)
