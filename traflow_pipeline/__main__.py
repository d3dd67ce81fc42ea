"""The console script, and `python -m traflow_pipeline`, as torchrun starts it."""

import sys

from traflow_pipeline.installation import check_rooms, prepare_threads


def main() -> None:
    """Run the command line; exit with 1 if another package shadows one of its own."""
    try:
        check_rooms()
    except ImportError as error:
        sys.exit(f"error: {error}")
    prepare_threads()
    from traflow_pipeline.cli import main as run

    run()


if __name__ == "__main__":
    main()
