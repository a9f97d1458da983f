"""From a track to its neighbours: release, audio, encoders, vector indexes, audiences. No torch, no HTTP."""
