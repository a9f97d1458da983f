"""BCL: track vectors from content in which tracks with similar audiences are near (arXiv 2308.02844)."""
