"""The daemon: HTTP, the shelf of models, residency and the LAN, on one event loop.

Rooms: `api` (wire dialects to and from `backends.types`), `models` (what is on disk), `residency`
(what is in memory), `lan` (who hears of us). Nothing CPU-bound runs here, and none of numpy, jinja2,
tokenizers, onnx, onnxruntime or mlx is ever imported: workers and converters are child processes.
"""
