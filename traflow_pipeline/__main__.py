"""`python -m traflow_pipeline`, as torchrun starts it."""

from traflow_pipeline.cli import main

if __name__ == "__main__":
    main()
