"""What the frozen base model offers: its tokenizers so far. It may import what lies below: models, weights, config."""
