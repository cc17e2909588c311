"""A dataset by the processes of a Ray cluster: a node plans, the driver counts, actors make images."""
