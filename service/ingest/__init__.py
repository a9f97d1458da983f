"""From an upload to a track that can be recommended."""
