"""What can perform: the engine contract, the engines, the catalogue of checkpoints and the ways to get them."""
