"""The data set of a training run: its tables, its audio excerpts, its playlist pairs."""
