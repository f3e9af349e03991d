"""`python -m medtl` is the medtl command."""

from medtl.cli import main

if __name__ == "__main__":
    main(prog_name="medtl")
