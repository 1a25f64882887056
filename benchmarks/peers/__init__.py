"""What people would use instead of PoseMill, each a script of its own over the same list.

Every one runs as `python -m benchmarks.peers.NAME LIST RESULT [--threads T] [--workers W]`: LIST is
a CSV with `uri,x,y,w,h` of pictures, or of clips with `task.CLIP_FRAMES` frames each, RESULT an
`.npz` that `task.Recorder` writes. All look at the same crops with the same weights; what differs
is who moves the pictures.
"""
