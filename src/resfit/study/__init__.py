"""Studies: a grid of overrides of a recipe, every point with several seeds, compared with a baseline.

`plan` reads a study file and makes the recipe of each point. `execute` runs them through an executor
(`resfit.executors`) and writes study.json and the page.
"""
