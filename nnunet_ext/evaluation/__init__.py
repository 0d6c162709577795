"""What a prediction costs and is worth: metrics, use of a machine, profiles, depths, sizes of networks."""
