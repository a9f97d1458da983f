"""LARP: towers for audio and captions, trained so that tracks of one playlist come near each other."""
