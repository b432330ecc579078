"""The page of a sweep, `sweep.html`: one file with everything in it, written while it runs."""
