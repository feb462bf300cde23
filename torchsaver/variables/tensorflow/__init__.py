"""TensorFlow's side of a model: what it calls the values of torch's modules and optimizers, and how it keeps them."""
