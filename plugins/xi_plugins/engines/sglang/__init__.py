"""The engine `SGLang`: its own OpenAI server as a child of the replica. Written against its sources; not verified on a GPU."""
