"""Errors of the models package.

ModelError                    anything below
|- BundleError                a bundle that cannot be loaded or written
|  |- BundleFormatError       made for another version of the format, or not a bundle at all
|  `- BundleCorruptError      files that are missing, changed or do not fit each other
|- ConfigurationError         settings that contradict each other or lie out of range
|- DataError                  text or series that cannot be used
`- TrainingError              training that cannot go on
   `- DivergenceError         losses, gradients or weights that are no finite numbers any more
"""


class ModelError(Exception):
    """Base of every error raised on purpose here; its text says what is wrong and what to do."""


class BundleError(ModelError):
    """A bundle cannot be loaded or written."""


class BundleFormatError(BundleError):
    """The folder is no bundle, or one of another format version."""


class BundleCorruptError(BundleError):
    """Files of a bundle are missing, changed, or do not fit each other."""


class ConfigurationError(ModelError):
    """Settings contradict each other or lie out of range."""


class DataError(ModelError):
    """Training or evaluation data cannot be used."""


class TrainingError(ModelError):
    """Training cannot go on."""


class DivergenceError(TrainingError):
    """Losses, gradients or weights are no finite numbers any more."""
