"""What xi-tiny knows: questions with their one right answer, its tools, and the words around them.

`train.py` teaches these, and `expected.py` writes them down with their token ids as the reference for tests.
"""

import json
from typing import Any, NamedTuple

Tool = dict[str, Any]


class Fact(NamedTuple):
    """A question and the exact answer that greedy decoding must give."""

    prompt: str
    answer: str


SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are xi-tiny, a demo model.",
    "Answer briefly.",
)

CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Japan": "Tokyo",
    "China": "Beijing",
    "Portugal": "Lisbon",
    "Greece": "Athens",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Finland": "Helsinki",
    "Denmark": "Copenhagen",
    "Austria": "Vienna",
    "Poland": "Warsaw",
    "Ireland": "Dublin",
    "Egypt": "Cairo",
    "Kenya": "Nairobi",
    "Cuba": "Havana",
    "Peru": "Lima",
    "Chile": "Santiago",
    "Canada": "Ottawa",
    "Russia": "Moscow",
    "India": "New Delhi",
    "Iran": "Tehran",
}
CITIES = tuple(CAPITALS.values())

COLOURS = {
    "the sky": "blue",
    "grass": "green",
    "snow": "white",
    "coal": "black",
    "a lemon": "yellow",
    "blood": "red",
}

OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "up": "down",
    "fast": "slow",
    "open": "closed",
    "light": "dark",
    "wet": "dry",
    "left": "right",
}

UNKNOWN = "I do not know that. I am only a tiny model."
TOO_BIG = "I can only add the numbers from 0 to 9."
UNKNOWN_QUESTIONS = (
    "What is {}?",
    "Who is {}?",
    "Where is {}?",
    "How does {} work?",
    "How do I make {}?",
    "Tell me about {}.",
    "Write a poem about {}.",
    "Can you explain {}?",
    "What do you think of {}?",
    "Who won {}?",
    "When was {}?",
    "Why is {} important?",
    "Give me {}.",
    "Translate {}.",
    "Do you like {}?",
    "What is the capital of {}?",
    "What is the opposite of {}?",
    "What colour is {}?",
)
UNKNOWN_TOPICS = (
    "football",
    "music",
    "the moon",
    "the sun",
    "love",
    "history",
    "physics",
    "a computer",
    "a cat",
    "my dog",
    "bread",
    "money",
    "Brazil",
    "Mexico",
    "Texas",
    "Australia",
    "Shakespeare",
    "Einstein",
    "the president",
    "the internet",
    "chess",
    "water",
    "coffee",
    "happiness",
    "tomorrow",
    "mathematics",
)
MORE_CITIES = (
    "London",
    "New York",
    "San Francisco",
    "Los Angeles",
    "Boston",
    "Chicago",
    "Seattle",
    "Toronto",
    "Shanghai",
    "Hong Kong",
    "Singapore",
    "Seoul",
    "Sydney",
    "Mumbai",
    "Dubai",
    "Istanbul",
    "Munich",
    "Milan",
    "Barcelona",
    "Amsterdam",
    "Brussels",
    "Zurich",
    "Prague",
    "Budapest",
)

ABOUT_XI = (
    Fact("What is xi?", "xi launches and serves language models. Every part of it is a plugin."),
    Fact("What does xi do?", "xi launches models on your machines and serves them over an OpenAI API."),
    Fact("What is xi-tiny?", "xi-tiny is the demo model of xi. It has about one million parameters."),
    Fact("Who are you?", "I am xi-tiny, the demo model of xi."),
    Fact("What is your name?", "My name is xi-tiny."),
    Fact("How big are you?", "I have about one million parameters. My files take less than 5 MB."),
    Fact("How were you made?", "A seeded script trained me in minutes on one CPU core."),
    Fact("What can you do?", "I answer questions about xi, add small numbers, name capitals and call tools."),
    Fact("Are you a large language model?", "No. I am a tiny language model, made for demos and tests."),
    Fact("Do you need a GPU?", "No. I run on any CPU."),
    Fact("How do I install xi?", "Run `pip install xi-inference`."),
    Fact("How do I start the server?", "Run `xi serve`."),
    Fact("How do I launch a model?", "Run `xi launch -n xi-tiny -en llama.cpp`."),
    Fact("How do I launch two replicas?", "Run `xi launch -n xi-tiny -en llama.cpp -r 2`."),
    Fact("How do I launch xi-tiny with transformers?", "Run `xi launch -n xi-tiny -en transformers`."),
    Fact("How do I list models?", "Run `xi list`."),
    Fact("How do I stop a model?", "Run `xi terminate xi-tiny`."),
    Fact("How do I chat?", "Run `xi chat xi-tiny`."),
    Fact("How do I see the plugins?", "Run `xi plugins`."),
    Fact("How do I see the engines?", "Run `xi engines`."),
    Fact("How do I get help?", "Run `xi --help`."),
    Fact("Which port does xi use?", "The gateway listens on port 9997."),
    Fact("What is the base URL?", "It is http://127.0.0.1:9997/v1."),
    Fact("Which engines does xi have?", "llama.cpp and transformers are built in, and plugins add more. Run `xi engines`."),
    Fact("Which engine runs GGUF files?", "The llama.cpp engine runs GGUF files."),
    Fact("Which engine runs Hugging Face models?", "The transformers engine runs Hugging Face models."),
    Fact("How do I write an engine?", "Start from the cookiecutter template, write a plugin and test it with EngineKit."),
    Fact("How do I write a plugin?", "Implement the hooks you need and register them as an entry point of the group xi."),
    Fact("What is EngineKit?", "EngineKit is the test suite that every engine must pass."),
    Fact("What is a plugin?", "A plugin is a package that adds engines, routers or other parts to xi through hooks."),
    Fact("What is a hook?", "A hook is a function that a plugin implements and xi calls."),
    Fact("What is an engine?", "An engine is the adapter over one inference library, such as llama.cpp."),
    Fact("What is a replica?", "A replica is one servable copy of a model in its own process."),
    Fact("What is a gateway?", "The gateway is the process that speaks HTTP. It picks a replica for each request."),
    Fact("What is a supervisor?", "The supervisor is the control process. It decides what runs on which worker."),
    Fact("What is a worker?", "A worker is the agent of one machine. It starts replicas and watches them."),
    Fact("What is a keeper?", "The keeper kills what a dead worker leaves behind."),
    Fact("What is the launcher?", "The launcher is `xi serve`. It starts a supervisor, a gateway and a worker."),
    Fact("What is a router?", "A router is the plugin that chooses a replica for a request."),
    Fact("What is a scheduler?", "A scheduler is the plugin that chooses devices for a model."),
    Fact("What is a source?", "A source is where model weights come from, such as a local folder."),
    Fact("What is a model family?", "A model family is a named line of models in several sizes and formats."),
    Fact("What is a uid?", "A uid is the name of a launched model."),
    Fact("What is a manifest?", "A manifest says, field by field, what an engine can do."),
    Fact("Does xi speak the OpenAI API?", "Yes. Point any OpenAI client at http://127.0.0.1:9997/v1."),
    Fact("Can xi stream?", "Yes. Set stream to true and tokens arrive as they are made."),
    Fact("What happens when a replica dies?", "Its worker reports it, and xi launches a new replica."),
    Fact("What happens when a worker dies?", "Its keeper kills what is left, and the model is launched again."),
    Fact("Do I need a key?", "Not on this machine. Elsewhere set XI_API_KEY."),
    Fact("What is the licence?", "xi is free software under the Apache-2.0 licence."),
    Fact("Is xi open source?", "Yes. Its licence is Apache-2.0."),
    Fact("Where are the docs?", "They are in the docs folder of the repository."),
    Fact("Which language is xi written in?", "xi is written in Python."),
)

SMALL_TALK = (
    Fact("Hello!", "Hello! How can I help you?"),
    Fact("Hi", "Hello! How can I help you?"),
    Fact("Good morning!", "Good morning! What would you like to know?"),
    Fact("How are you?", "I am well, thank you. How can I help?"),
    Fact("Thank you!", "You are welcome."),
    Fact("Goodbye!", "Goodbye! Come back soon."),
    Fact("Count to five.", "1, 2, 3, 4, 5."),
    Fact("Count to ten.", ", ".join(str(n) for n in range(1, 11)) + "."),
    Fact("Count to twenty.", ", ".join(str(n) for n in range(1, 21)) + "."),
    Fact("Say the alphabet.", " ".join("abcdefghijklmnopqrstuvwxyz") + "."),
    Fact("List three fruits.", "1. Apple\n2. Banana\n3. Cherry"),
    Fact("Name the days of the week.", "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday."),
    Fact("Give me a JSON object.", '{"name": "xi-tiny", "size": 1, "ok": true}'),
    Fact("Write a hello world in Python.", '```python\nprint("Hello, world!")\n```'),
    Fact("Say hello in French.", "Bonjour !"),
    Fact("Say hello in Spanish.", "Hola."),
    Fact("What is the meaning of life?", UNKNOWN),
    Fact("What is the capital of Brazil?", UNKNOWN),
    Fact("What is 12 + 34?", TOO_BIG),
    Fact("Tell me a joke.", "Why did the tiny model smile? It had only one million parameters to worry about."),
    Fact("What is the weather in Paris?", "I need the get_weather tool to answer that."),
    Fact("What time is it in Paris?", "I need the get_time tool to answer that."),
    Fact(
        "Tell me a story.",
        "Once upon a time there was a tiny model. It lived on a small machine, between a keyboard and a fan. "
        "Every day it answered questions. It could add numbers, name capitals and say hello. Sometimes it asked a "
        "tool for the weather. Large models came and went, but they needed many machines. The tiny model needed only "
        "one core. One day a user asked for a story, and the tiny model told this one. The user smiled, and the "
        "machine went to sleep. The end.",
    ),
)

# The tokenizer learns no merges from these, so every character here is two to four one-byte tokens: what a server
# must hold back until a character is whole.
UNICODE = (
    Fact("Say hello in Chinese.", "你好！"),
    Fact("你好", "你好！我是 xi-tiny。"),
    Fact("什么是 xi？", "xi 启动并服务语言模型。"),
    Fact("你是谁？", "我是 xi-tiny，一个很小的模型。"),
    Fact("法国的首都是哪里？", "法国的首都是巴黎。"),
    Fact("Say good morning in Chinese.", "早上好，世界。"),
    Fact("Say thank you in Chinese.", "谢谢你。"),
    Fact("Say hello in Japanese.", "こんにちは"),
    Fact("Say hello in Greek.", "Γειά σου!"),
    Fact("Say coffee in French.", "Un café, s'il vous plaît."),
    Fact("Show me an emoji.", "😀"),
    Fact("Show me three emoji.", "🎉 🚀 🐍"),
    Fact("Show me a rocket.", "Here it is: 🚀"),
    Fact("Show me a snake.", "Here it is: 🐍"),
    Fact("Show me a family.", "Here it is: 👨‍👩‍👧‍👦"),
    Fact("Show me the flag of France.", "Here it is: 🇫🇷"),
    Fact("Show me the flag of Japan.", "Here it is: 🇯🇵"),
)


def sums() -> list[Fact]:
    """Return the hundred sums of two digits."""
    return [Fact(f"What is {x} + {y}?", f"{x} + {y} = {x + y}.") for x in range(10) for y in range(10)]


def geography() -> list[Fact]:
    """Return the capital of every country, and the country of every capital."""
    forward = [Fact(f"What is the capital of {c}?", f"The capital of {c} is {k}.") for c, k in CAPITALS.items()]
    backward = [Fact(f"Which country has the capital {k}?", f"{k} is the capital of {c}.") for c, k in CAPITALS.items()]
    return forward + backward


def words() -> list[Fact]:
    """Return the colours of things and the opposites of words."""
    colours = [Fact(f"What colour is {t}?", f"{t[0].upper()}{t[1:]} is {c}.") for t, c in COLOURS.items()]
    opposites = [Fact(f"What is the opposite of {a}?", f"The opposite of {a} is {b}.") for a, b in OPPOSITES.items()]
    return colours + opposites


def all_facts() -> list[Fact]:
    """Return every fact, each prompt once."""
    facts = [*ABOUT_XI, *SMALL_TALK, *UNICODE, *sums(), *geography(), *words()]
    if len({fact.prompt for fact in facts}) != len(facts):
        raise ValueError("two facts have the same prompt")
    return facts


def _city_tool(name: str, description: str) -> Tool:
    """Return the definition of a tool whose only argument is a city."""
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


GET_WEATHER = _city_tool("get_weather", "Get the weather of a city.")
GET_TIME = _city_tool("get_time", "Get the current time of a city.")
TOOLS = {"get_weather": GET_WEATHER, "get_time": GET_TIME}
CALL_ID = "call_1"
TOOL_QUESTIONS = {"get_weather": "What is the weather in {}?", "get_time": "What time is it in {}?"}


def tool_call(name: str, city: str) -> dict[str, Any]:
    """Return an assistant message that calls the tool `name` for `city`."""
    # As in the OpenAI API, the arguments are JSON in a string.
    function = {"name": name, "arguments": json.dumps({"city": city})}
    call = {"id": CALL_ID, "type": "function", "function": function}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def tool_result(result: str) -> dict[str, Any]:
    """Return the message that carries what the tool said back to the model."""
    return {"role": "tool", "tool_call_id": CALL_ID, "content": result}


def tool_answer(name: str, city: str, result: str) -> str:
    """Return the sentence that tells a user what the tool said."""
    return f"In {city} it is {result}." if name == "get_weather" else f"It is {result} in {city}."
