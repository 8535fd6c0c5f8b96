"""`python -m hiddenstate_models` is `hiddenstate-models`."""

from hiddenstate_models.cli import main

main()
