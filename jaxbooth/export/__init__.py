"""What a trained run becomes for other tools. It may import everything below a run: base model, weights, training."""
