"""`python -m vibethinker.worker serve [--fork]`, and `child`, which the server starts."""

import sys

from vibethinker.worker import child, server

if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        server.serve(fork="--fork" in sys.argv)
    elif sys.argv[1:2] == ["child"]:
        child.main()
    else:
        sys.exit("usage: python -m vibethinker.worker serve [--fork]")
