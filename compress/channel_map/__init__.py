"""Which channel of a network is which, all the way through: what channel pruning has to know to cut right."""
