"""`/v1/responses`: items instead of messages, typed events instead of chunks."""
