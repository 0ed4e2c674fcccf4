"""Low rank: how far the weight of a layer can be told by thinner ones, which ranks to take, and what they cost."""
