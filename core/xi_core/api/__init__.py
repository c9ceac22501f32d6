"""The public HTTP APIs as msgspec structs: `openai` (chat, completions, models), `embeddings` and `control` (launching)."""
