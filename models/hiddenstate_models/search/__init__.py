"""Search for the settings with which training does best, trial by trial (Optuna; Akiba et al., 2019)."""
