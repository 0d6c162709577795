"""How stock nnU-Net finds this package: the start-up hook, and one seam per nnU-Net module that is extended."""
