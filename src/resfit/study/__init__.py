"""Studies: compare variants of a recipe (a grid of overrides), each with several seeds, with a baseline.

`plan` reads a study file and makes the recipe of each point. `execute` runs them with an executor (`resfit.executors`)
and writes study.json and the report.
"""
