"""Run the command line as `python -m metanb`."""

from metanb.cli import main

if __name__ == "__main__":
    main()
