"""Labels of unlabelled scans from networks that agree: consensus, scores, selection, and datasets made of them."""
