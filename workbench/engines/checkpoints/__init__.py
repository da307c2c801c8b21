"""Models on disk: checks of folders before they are loaded, and conversion of other formats.

`folder` checks a folder; `architecture` writes one without weights. `convert` converts a training
checkpoint (read by `dcp`), `gguf` a GGUF file (read by `gguf_file` and `gguf_tokenizer`).
"""
