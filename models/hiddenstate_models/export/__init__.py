"""Writes bundles: the graph of one served step, its int8 form, the card and the folder."""

from hiddenstate_models.export.random_bundles import random_bundle
from hiddenstate_models.export.sources import export_source
from hiddenstate_models.export.writing import BundleContents, write_bundle

__all__ = ["BundleContents", "export_source", "random_bundle", "write_bundle"]
