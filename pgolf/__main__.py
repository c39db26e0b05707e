"""`python -m pgolf`, hence `torchrun -m pgolf`: the same as `pgolf`, where no script is on the PATH."""

from pgolf.cli import main

if __name__ == "__main__":
    main(prog_name="pgolf")
