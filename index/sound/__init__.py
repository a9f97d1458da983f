"""Recordings -> samples -> log-mel: containers, decoding, the front end."""
