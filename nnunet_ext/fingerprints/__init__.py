"""Statistics over cases: intensities, shapes, spacings, outliers."""
