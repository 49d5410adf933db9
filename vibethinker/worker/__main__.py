"""`python -m vibethinker.worker serve [--fork]`; `child`, which the server starts, and `node`, which `vibethinker join`
does."""

import sys

from vibethinker.worker import child, joining, server

if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        server.serve(fork="--fork" in sys.argv)
    elif sys.argv[1:2] == ["child"]:
        child.main()
    elif sys.argv[1:2] == ["node"]:
        joining.main(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    else:
        sys.exit("usage: python -m vibethinker.worker serve [--fork]")
