"""Is it any good? Protocols, metrics, intervals and baselines that every model is held against."""
