"""`python -m parspike`, and so `torchrun -m parspike`."""

from parspike.cli import main

if __name__ == "__main__":
    main()
