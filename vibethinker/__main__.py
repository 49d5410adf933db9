"""`python -m vibethinker`."""

from vibethinker.cli import main

if __name__ == "__main__":
    main()
