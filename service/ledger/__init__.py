"""The ledger: what happened to the catalogue since the release, in SQLite or on Redis Streams."""
