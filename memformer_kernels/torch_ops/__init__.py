"""The package's operations as PyTorch knows them (`ops`), and how each is registered: autograd, transforms, autocast,
compilers, sharded tensors (`registration`,
`nodes`, `transforms`, `sharding`), and the short way round it (`fast_path`).
"""
