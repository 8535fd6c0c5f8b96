"""Arms that are runs of `hiddenstate-models train`: their settings are what that command would be told."""

from collections.abc import Mapping
from typing import Any

import torch

from hiddenstate_models.experiments.characters import CHARACTERS
from hiddenstate_models.experiments.experiment import Listener, Outcome
from hiddenstate_models.experiments.files import located
from hiddenstate_models.experiments.fitting import fit
from hiddenstate_models.training.options import TrainingOptions
from hiddenstate_models.training.recipe import Recipe, Told
from hiddenstate_models.training.recipes import RECIPES

_RECIPES: Mapping[str, Recipe[Any]] = {**RECIPES, CHARACTERS.task: CHARACTERS}


def train(settings: Mapping[str, Any], seed: int, listener: Listener) -> Outcome:
    """One run: `task`, `data`, `valid`, `options` (the task's own), `training` (TrainingOptions)."""
    recipe = _RECIPES[settings["task"]]
    training = TrainingOptions(**settings["training"], seed=seed)
    told = Told(located(settings["data"]), located(settings["valid"]), recipe.settings(**settings["options"]), training)
    torch.manual_seed(seed)
    prepared = recipe.prepare(told, None)
    return fit(prepared.network, prepared.task, training, listener)
