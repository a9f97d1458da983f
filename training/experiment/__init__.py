"""Push experiments: who of an audience is shown a track and who is not, and what came of it."""
