"""Read a data set from Python: by index, in batches, and with stock webdataset.

python examples/read_shards.py runs/quickstart/data
"""

import sys
from pathlib import Path

import numpy as np
import webdataset

import traflow_pipeline as tp


def main(data: Path = Path("runs/quickstart/data")) -> None:
    dataset = tp.open_dataset(data)
    record = dataset[5]
    print(f"record 5 of {len(dataset)}: {len(record.times)} times from {record.times[0]:g} to {record.times[-1]:g}")

    shift = np.mean([np.abs(batch.sample - batch.noise).mean() for batch in dataset.batches(64)])
    print(f"mean |sample - noise|: {shift:.3f}")

    # A block of records is one sample of webdataset; its arrays have the records as their leading dimension.
    shards = [str(path) for path in sorted(data.glob("*.tar"))]
    rows = webdataset.WebDataset(shards, shardshuffle=False).decode().to_tuple("noise.npy", "sample.npy").unbatched()
    print(f"webdataset reads {sum(1 for _ in rows)} records")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
