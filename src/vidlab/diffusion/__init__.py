"""The mathematics of diffusion: schedules, parameterizations, weightings, time samplers, objectives."""
