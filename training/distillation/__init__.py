"""Learning from a teacher, and other help that is gone when the network is deployed."""
