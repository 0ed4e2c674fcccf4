"""What all presses have in common: the contract, the proof, what is measured before and after."""
