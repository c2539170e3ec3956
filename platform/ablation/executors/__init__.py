"""Ways to run cells: in this process, or on a cluster."""
