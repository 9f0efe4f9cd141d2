"""Where runs take place: in this process, in several here (`local`), or on a Ray cluster (`cluster`); and many at once.

Every run is a pure function of recipe and seed, so that all of them leave the same run folders.
"""
