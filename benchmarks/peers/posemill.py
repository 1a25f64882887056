"""`posemill annotate` on the same list; the record is read from the parts' footers and rows."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq

from benchmarks.peers.task import Recorder, options, read_list


def main() -> None:
    """Run. `--threads 0` leaves the layout to PoseMill."""
    args = options()
    output = args.result.with_suffix(".out")
    shutil.rmtree(output, ignore_errors=True)
    recorder = Recorder(started=time.time())
    command = [sys.executable, "-m", "jobs.cli", "annotate", str(args.list), str(output)]
    if args.threads:
        command += ["--threads", str(args.threads), "--estimators", str(args.workers)]
    subprocess.run(command, check=True)
    first = {item.uri: item.first for item in read_list(args.list)}
    parts = sorted((output / "annotations").rglob("*.parquet"), key=lambda p: p.stat().st_mtime_ns)
    for part in parts:
        rows = pq.read_table(part)
        columns = [np.stack(rows[name].to_numpy()) for name in ("x", "y", "keypoint_score")]
        uris = [uri.removeprefix("file://") for uri in rows["uri"].to_pylist()]
        frames = rows["frame_index"].to_pylist()
        indices = [first[uri] + (frame or 0) for uri, frame in zip(uris, frames, strict=True)]
        recorder.add(np.array(indices), np.stack(columns, axis=-1))
        recorder.times[-1] = part.stat().st_mtime
    recorder.save(args.result)


if __name__ == "__main__":
    main()
