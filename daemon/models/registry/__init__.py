"""Models from and to registries: the Docker registry protocol with the field's own additions."""
