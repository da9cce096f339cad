"""Types of the native core; mirrors csrc/bindings."""
