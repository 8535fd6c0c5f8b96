"""Every task that can be trained."""

from typing import Any

from hiddenstate_models.training.classification import CLASSIFICATION
from hiddenstate_models.training.forecasting import FORECASTING
from hiddenstate_models.training.music import MUSIC
from hiddenstate_models.training.next_value import NEXT_VALUE
from hiddenstate_models.training.next_word import NEXT_WORD
from hiddenstate_models.training.recipe import Recipe
from hiddenstate_models.training.tagging import TAGGING

RECIPES: dict[str, Recipe[Any]] = {
    recipe.task: recipe for recipe in (NEXT_WORD, NEXT_VALUE, FORECASTING, MUSIC, CLASSIFICATION, TAGGING)
}
