"""The blocks of a model, one after another: from calibration states and weights to the shards that are written."""
