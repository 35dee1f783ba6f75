"""What solves a task: classical optimisers, Memformers read as methods, shipped networks; how good each is."""
