"""Models on disk: folders checked before they are loaded, other formats made into such folders.

`folder` checks, `architecture` writes one without weights; `convert` makes one of a training
checkpoint (`dcp` reads it), `gguf` of a GGUF file (`gguf_file` and `gguf_tokenizer` read it).
"""
