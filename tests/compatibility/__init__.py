"""What works under what: every public operation, module and `train_steps`, under every way PyTorch has into them."""
