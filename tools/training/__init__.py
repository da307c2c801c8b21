"""How the embedded models are made: the text, the tokenizer, the network, the training.

It needs torch, transformers, tokenizers and safetensors, and little else of the package.
"""
