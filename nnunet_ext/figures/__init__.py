"""Every picture, and their one style."""
