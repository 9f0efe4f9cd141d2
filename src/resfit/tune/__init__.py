"""Search for better settings of a recipe on its validation split.

`space` reads what may vary, `search` tries it out with Optuna. The test set is left out of the process altogether.
"""
