"""The worker: one process per loaded model, `python -m backends.worker --fd N`.

The main thread owns the socket and everything that is text; one engine thread owns the runtime. It
holds no state that outlives it, and ends with its daemon.
"""
