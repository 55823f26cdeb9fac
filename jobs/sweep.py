"""Entry point on a cluster: `ray submit cluster.yaml jobs/sweep.py -- pipelines/x.py --set method.rank=4,8`.

`ray submit` copies only this file to the head; cluster.yaml installs the package there. It is the same as
`lorae sweep --address auto` and refuses to run without a cluster.
"""

import sys

from jobs.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", "--address", "auto", *sys.argv[1:]]))
