"""Evidence for a data set: LARP trained in every variant, as tables and figures of the paper's kinds."""
