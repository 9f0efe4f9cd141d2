"""Executors: train many runs in this process, in several local processes (`local`), or on a Ray cluster (`cluster`).

`jobs` runs a list of jobs on any of them. A run depends only on recipe and seed, so all executors leave the same run
folders.
"""
