"""The engine `llama.cpp`: llama.cpp's own server inside the replica, by the xllamacpp package. `llama_cpp_python`: the other binding."""
