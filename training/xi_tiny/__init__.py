"""Training of the demo model xi-tiny: facts, tokenizer, training loop, GGUF conversion and checks."""
