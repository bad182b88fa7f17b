"""What runs a converted model: the engines, the text around them, and the worker process.

Rooms: `types` and `frames` (all the daemon sees), `text` (text to ids and back), `engine` (what the
runtimes share: sampling, grammar), one folder per runtime, and `worker`, the process that joins them.
Imports nothing of ours but `converters.artifact`. A runtime is imported inside its own folder only.
"""
