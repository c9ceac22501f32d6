"""The engine `vLLM`: its own OpenAI server as a child of the replica."""
