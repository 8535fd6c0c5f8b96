"""Scores of trained models beside their baselines."""
