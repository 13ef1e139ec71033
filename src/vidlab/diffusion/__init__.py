"""The mathematics of diffusion: schedules, parameterisations, weightings, time samplers, objectives."""
