"""What is known of tracks: the catalogue by row, its file, filters, search by title."""
