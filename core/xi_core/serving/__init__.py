"""OpenAI semantics over an engine, inside the replica: validation, templates, detokenizing, stops, tools, chunks."""
