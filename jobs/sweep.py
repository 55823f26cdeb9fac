"""The entry for a cluster: `ray submit cluster.yaml jobs/sweep.py -- pipelines/x.py --set method.rank=4,8`.

`ray submit` copies only this file to the head; the package is installed there by cluster.yaml. The same as
`lorae sweep --address auto`: it refuses to run where there is no cluster.
"""

import sys

from jobs.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", "--address", "auto", *sys.argv[1:]]))
