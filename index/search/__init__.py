"""Nearest neighbours: the exact index, sealed segments, segments that grow, Milvus, a prior on candidates."""
