"""A classifier over HTTP. Only `job` knows Ray; the other files need none."""
