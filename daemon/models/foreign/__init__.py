"""Models in other programs' folders: shown and used where they lie, never written."""
