"""The public HTTP APIs as msgspec structs: `openai` (chat, completions, models) and `control` (launching)."""
