"""python -m service ingest: sends a folder of recordings, or what a CSV file lists, to a running service."""
