"""The demo: phantoms instead of a download, stock commands, supervised training against cross pseudo supervision."""
