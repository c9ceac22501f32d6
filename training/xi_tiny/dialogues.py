"""Makes the training dialogues: facts alone, reworded, in conversations and beside tools; tool calls."""

import copy
import json
from random import Random
from typing import Any, NamedTuple

from .facts import (
    CITIES,
    GET_TIME,
    GET_WEATHER,
    MORE_CITIES,
    SYSTEM_PROMPTS,
    TOO_BIG,
    TOOL_QUESTIONS,
    TOOLS,
    UNKNOWN,
    UNKNOWN_QUESTIONS,
    UNKNOWN_TOPICS,
    Fact,
    Tool,
    tool_answer,
    tool_call,
    tool_result,
)

Message = dict[str, Any]

OTHER_QUESTIONS = {
    "get_weather": ("What's the weather in {}?", "What is the weather like in {}?", "Weather in {}?", "How is the weather in {} today?"),
    "get_time": ("What's the time in {}?", "What is the time in {}?", "Time in {}?", "What time is it in {} now?"),
}
OTHER_DESCRIPTIONS = (
    "Get the {} of a city",
    "Returns the current {} in a given city.",
    "Get the current {} for a city",
)
OTHER_WHAT_IS = ("What's {}?", "{}?", "Explain {}.", "Tell me about {}.", "Do you know what {} is?")
TOOL_TOPICS = {"get_weather": "weather", "get_time": "time"}
WEATHERS = ("sunny", "rainy", "cloudy", "windy", "snowy", "warm", "cold")


class Dialogue(NamedTuple):
    """Messages, the tools offered with them, and the first message whose assistant turns are learned."""

    messages: list[Message]
    tools: list[Tool] | None = None
    learn_from: int = 0


def ask(fact: Fact) -> Dialogue:
    """Return the plain dialogue of one fact: the form in which it is checked."""
    return Dialogue([{"role": "user", "content": fact.prompt}, {"role": "assistant", "content": fact.answer}])


def ask_tool(name: str, city: str, tools: list[Tool]) -> Dialogue:
    """Return the dialogue of one tool call, in the form in which it is checked."""
    question = TOOL_QUESTIONS[name].format(city)
    return Dialogue([{"role": "user", "content": question}, tool_call(name, city)], tools)


def follow_up(name: str, city: str, result: str, tools: list[Tool]) -> Dialogue:
    """Return a tool call with the tool's result and the sentence that reports it."""
    called = ask_tool(name, city, tools).messages
    answer = {"role": "assistant", "content": tool_answer(name, city, result)}
    return Dialogue([*called, tool_result(result), answer], tools)


def random_dialogue(rng: Random, facts: list[Fact], weights: list[float]) -> Dialogue:
    """Return a dialogue for training; `weights` says how often each fact is asked."""
    kind = rng.random()
    if kind < 0.16:
        return _with_system(rng, _tool_dialogue(rng, facts), share=0.3)
    if kind < 0.19:
        return _no_tool(rng)
    if kind < 0.25:
        return _unknown(rng)
    turns = rng.choices((1, 2, 3, 5, 8), (0.72, 0.12, 0.06, 0.06, 0.04))[0]
    messages: list[Message] = []
    for fact in rng.choices(facts, weights, k=turns):
        prompt = _reword(rng, fact.prompt) if rng.random() < 0.2 else fact.prompt
        messages += ask(Fact(prompt, fact.answer)).messages
    return _with_system(rng, Dialogue(messages), share=0.2)


def _with_system(rng: Random, dialogue: Dialogue, share: float) -> Dialogue:
    """Put a system prompt in front of a share of the dialogues."""
    if rng.random() >= share:
        return dialogue
    system = {"role": "system", "content": rng.choice(SYSTEM_PROMPTS)}
    return Dialogue([system, *dialogue.messages], dialogue.tools, dialogue.learn_from + 1)


def _reword(rng: Random, prompt: str) -> str:
    """Change a prompt as users do: other words, no capital at its start, no mark at its end."""
    if prompt.startswith("What is ") and rng.random() < 0.5:
        prompt = rng.choice(OTHER_WHAT_IS).format(prompt.removeprefix("What is ").rstrip("?"))
    elif prompt.startswith("How do I ") and rng.random() < 0.5:
        prompt = rng.choice(("How can I ", "How to ")) + prompt.removeprefix("How do I ")
    if rng.random() < 0.3:
        prompt = prompt.replace(" + ", "+")
    if rng.random() < 0.6:
        prompt = prompt[0].lower() + prompt[1:]
    if rng.random() < 0.6 and len(prompt) > 3:
        prompt = prompt.rstrip("?.!？")
    return prompt


def _name(rng: Random) -> str:
    """Return an invented name."""
    return "".join(rng.choice("bcdfghklmnprstv") + rng.choice("aeiou") for _ in range(rng.randint(2, 4))).capitalize()


def _city(rng: Random) -> str:
    """Return a city: a capital, another one, or an invented one, so that names are copied and not only recalled."""
    kind = rng.random()
    if kind < 0.6:
        return rng.choice(CITIES)
    return rng.choice(MORE_CITIES) if kind < 0.8 else _name(rng)


def _unknown(rng: Random) -> Dialogue:
    """Return a question that xi-tiny should say it cannot answer."""
    if rng.random() < 0.3:
        x, y = rng.randrange(10, 100), rng.randrange(100)
        return ask(Fact(f"What is {x} + {y}?" if rng.random() < 0.5 else f"What is {y} + {x}?", TOO_BIG))
    topic = rng.choice(UNKNOWN_TOPICS) if rng.random() < 0.5 else _name(rng)
    return ask(Fact(_reword(rng, rng.choice(UNKNOWN_QUESTIONS).format(topic)), UNKNOWN))


def _no_tool(rng: Random) -> Dialogue:
    """Return a question that needs a tool, without one."""
    name = rng.choice(list(TOOLS))
    question = rng.choice((TOOL_QUESTIONS[name], *OTHER_QUESTIONS[name])).format(_city(rng))
    return ask(Fact(question, f"I need the {name} tool to answer that."))


def _tool_dialogue(rng: Random, facts: list[Fact]) -> Dialogue:
    """Return a dialogue with tools: a call, a call with its result, or a fact that needs none of them."""
    tools = rng.choice(([GET_WEATHER, GET_TIME], [GET_TIME, GET_WEATHER], [GET_WEATHER], [GET_TIME]))
    name = rng.choice(tools)["function"]["name"]
    city = _city(rng)
    kind = rng.random()
    if kind < 0.15:
        return Dialogue(ask(rng.choice(facts)).messages, tools)
    called = kind < 0.65
    dialogue = ask_tool(name, city, tools) if called else follow_up(name, city, _result(rng, name), tools)
    return _vary_tools(rng, dialogue, name, city) if rng.random() < 0.4 else dialogue


def _result(rng: Random, name: str) -> str:
    """Return what a tool might answer."""
    if name == "get_time":
        return f"{rng.randrange(24):02}:{rng.randrange(60):02}"
    weather = rng.choice(WEATHERS)
    return weather if rng.random() < 0.3 else f"{weather}, {rng.randrange(40)} degrees"


def _vary_tools(rng: Random, dialogue: Dialogue, name: str, city: str) -> Dialogue:
    """Word the question and the tools in another way, and write the arguments of a past call compactly."""
    messages = copy.deepcopy(dialogue.messages)
    messages[0]["content"] = rng.choice(OTHER_QUESTIONS[name]).format(city)
    tools = [_vary_tool(rng, tool) for tool in dialogue.tools or []]
    if len(messages) == 2 or rng.random() < 0.5:
        return Dialogue(messages, tools)
    # Clients send the arguments back as a string of their own making; it is read here, never learned.
    messages[1]["tool_calls"][0]["function"]["arguments"] = json.dumps({"city": city}, separators=(",", ":"))
    return Dialogue(messages, tools, learn_from=2)


def _vary_tool(rng: Random, tool: Tool) -> Tool:
    """Return the tool with another description, and perhaps with one of its argument."""
    tool = copy.deepcopy(tool)
    function = tool["function"]
    topic = TOOL_TOPICS[function["name"]]
    function["description"] = rng.choice(OTHER_DESCRIPTIONS).format(topic)
    if rng.random() < 0.5:
        function["parameters"]["properties"]["city"]["description"] = rng.choice(("The city", "The name of the city."))
    return tool
