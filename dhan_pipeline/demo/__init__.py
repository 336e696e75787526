"""The main job on one machine, over the simulated exchange: what `make demo` runs."""
