"""Images on their way into a prompt: decoded, planned, cut into patches, turned into vectors.

Knows no model runtime: a tower is run through `backends.vision.plan.Tower`.
"""
