"""The names after ``-fpe`` and ``-pl``, and the preprocessors that plans name."""
