"""How good a trained model is: features of pictures and prompts, and what they say."""
