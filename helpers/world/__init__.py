"""The pocket world: drawn scenes whose truth is known exactly."""
