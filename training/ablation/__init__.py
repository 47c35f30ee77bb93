"""Train variants of the model on equal terms and compare them."""
