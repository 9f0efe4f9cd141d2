"""Studies: a grid of overrides of a recipe, every point with several seeds, compared with a baseline.

`plan` reads a study file and makes the points' recipes, `executor` says where runs take place, `execute` does them.
"""
