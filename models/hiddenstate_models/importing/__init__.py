"""Makes bundles of models that were trained elsewhere: torch's own recurrent modules, and ONNX graphs around one."""

from hiddenstate_models.importing.bundles import ImportOptions, import_model

__all__ = ["ImportOptions", "import_model"]
