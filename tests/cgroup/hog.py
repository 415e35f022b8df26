"""Takes memory and keeps it: `hog.py BYTES SECONDS` takes it evenly over SECONDS, then waits until its input ends."""

from __future__ import annotations

import sys
import time

PIECE_BYTES = 2 << 20


def main() -> None:
    num_bytes, seconds = int(sys.argv[1]), float(sys.argv[2])
    num_pieces = -(-num_bytes // PIECE_BYTES)
    begin, taken = time.monotonic(), []
    for index in range(num_pieces):
        # Written, not only asked for: each page is its own.
        taken.append(bytearray(b"x") * PIECE_BYTES)
        time.sleep(max(0.0, begin + seconds * (index + 1) / num_pieces - time.monotonic()))
    print("holding", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
