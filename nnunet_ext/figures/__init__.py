"""Every picture of the commands, and the style that they share."""
