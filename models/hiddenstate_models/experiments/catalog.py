"""The experiments there are, by name."""

from collections.abc import Mapping

from hiddenstate_models.experiments.adding import Adding
from hiddenstate_models.experiments.clipping import Clipping
from hiddenstate_models.experiments.copying import Copying
from hiddenstate_models.experiments.experiment import Experiment
from hiddenstate_models.experiments.memory import Memory
from hiddenstate_models.experiments.ordering import Ordering
from hiddenstate_models.experiments.truncation import Truncation

EXPERIMENTS: Mapping[str, Experiment] = {
    one.name: one for one in (Adding(), Copying(), Clipping(), Ordering(), Truncation(), Memory())
}
