"""Vision towers with their projectors: one file per `clip.projector_type`."""
