"""What we conclude: stored results to tables and figures, without a model, ray or a GPU."""
