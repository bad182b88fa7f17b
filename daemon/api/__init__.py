"""HTTP: one folder or file per dialect, each from its wire Structs to `Chat` and back."""
