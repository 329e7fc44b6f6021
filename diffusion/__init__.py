"""Flow matching: path, timestep laws, conditions, guidance, samplers. Pure functions on tensors."""
