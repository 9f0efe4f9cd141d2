"""Hyperparameter search for a recipe, judged on its validation split.

`space` reads what may vary, `search` runs the trials with Optuna. Test images are dropped before training, and
never scored.
"""
