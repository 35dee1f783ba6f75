"""What one call costs: where it runs and why, the bytes and operations it cannot avoid, how near it comes to them."""
