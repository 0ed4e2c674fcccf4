"""One method a file: what it adds to the loss, and a card that says when it helps."""
