"""The release: what it is, how it is checked, folded and sealed again."""
