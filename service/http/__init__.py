"""Between a socket and the routes: connections, limits, keys, bodies, schemas, problems."""
