"""The online side: a FastAPI service that reads a release and takes in new tracks."""
