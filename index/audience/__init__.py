"""CAT: listeners, their tastes by clustering, whom to show a track to."""
