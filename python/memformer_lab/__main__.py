"""`python -m memformer_lab` is `memformer-lab`."""

from memformer_lab.cli import main

if __name__ == "__main__":
    main()
