"""The engine `llama-cpp-python`: llama.cpp's batches, decoded by xi's batcher, by the llama-cpp-python package."""
