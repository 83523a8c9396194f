"""Live text to rows of tokens: sources, mixing, tokenizer, packing, the journal and the process that fills it."""
