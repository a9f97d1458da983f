"""From the raw downloads of public data sets to data set directories (docs/reproduce.md)."""
