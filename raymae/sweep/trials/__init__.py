"""The trials of a sweep, as Ray Tune runs them."""
