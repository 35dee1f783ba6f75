"""Training runs: configuration, steps, what they leave on the disk, and the processes that share them."""
