"""The offline side: learns track vectors (LARP, BCL), measures them, and publishes releases."""
