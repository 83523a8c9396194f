"""From live text to rows of tokens: sources, mixing, tokenizer, packing, journal and producer."""
