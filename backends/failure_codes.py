"""What can go wrong with a request, in one word each."""

# What went wrong, for the daemon to give a status to. One word each; the message carries the rest.
FAILURE_CODES = {
    "invalid": "the request cannot be understood (400)",
    "too_long": "the prompt does not fit the context (400)",
    "unsupported": "this engine or build cannot do it (501)",
    "template": "the chat template failed on these messages (400)",
    "load": "the model could not be loaded (500)",
    "memory": "not enough memory (500)",
    "device": "the device is at fault, and another one may do (500)",
    "internal": "a defect or a runtime error (500)",
    "died": "the worker ended (500)",
    "cancelled": "the client or the daemon took it back (499)",
}
