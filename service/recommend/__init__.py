"""The continuation of a playlist."""
