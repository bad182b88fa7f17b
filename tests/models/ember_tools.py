"""Tool conversations for the bundled model: a call copied from the question, and its result told.

Tool and parameter names, descriptions and order vary, so that the model reads the tools it is given
instead of remembering them. Owns no wording but its own.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.models.ember_conversation import Conversation, Message, drawn, load


@dataclass(frozen=True)
class Exercise:
    """One tool, a question for it, the call expected, and what its result makes of the answer."""

    tool: dict[str, Any]
    question: str
    arguments: dict[str, Any]
    result: str
    answer: str


def tool_conversation(plain: list[Conversation], random: Random) -> Conversation:
    """One to three tools given; usually one is called, sometimes none is needed."""
    exercises = [make(random) for make in random.sample(KINDS, random.randint(1, 3))]
    tools = tuple(exercise.tool for exercise in exercises)
    system = system_message(random) if random.random() < 0.25 else ()
    if random.random() < 0.15:
        return Conversation((*system, *random.choice(plain).messages), tools)
    chosen = random.choice(exercises)
    messages: list[Message] = [*system, *opening(plain, random)]
    messages.append({"role": "user", "content": chosen.question})
    messages.append(call_message(chosen))
    if random.random() < 0.6:
        messages.append({"role": "tool", "content": chosen.result})
        messages.append({"role": "assistant", "content": chosen.answer})
    return Conversation(tuple(messages), tools)


def system_message(random: Random) -> tuple[Message, ...]:
    return ({"role": "system", "content": random.choice(load("tables")["systems"])},)


def opening(plain: list[Conversation], random: Random) -> tuple[Message, ...]:
    """Now and then a turn of small talk before the question."""
    return random.choice(plain).messages if random.random() < 0.1 else ()


def call_message(exercise: Exercise) -> Message:
    function = {"name": exercise.tool["function"]["name"], "arguments": exercise.arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}


def function_tool(name: str, description: str, parameters: dict[str, str]) -> dict[str, Any]:
    """A tool in wire form; `parameters` maps names to JSON types, all of them required."""
    properties = {
        key: {"type": kind, "description": f"The {key.replace('_', ' ')}"}
        for key, kind in parameters.items()
    }
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    function = {"name": name, "description": description, "parameters": schema}
    return {"type": "function", "function": function}


def weather(random: Random) -> Exercise:
    city = drawn(random, "cities")
    key = random.choice(["city", "location", "place"])
    name = random.choice(["get_weather", "get_current_weather", "weather", "get_forecast"])
    tool = function_tool(name, "Get the weather for a city", {key: "string"})
    arguments = {key: city}
    if random.random() < 0.3:
        unit = random.choice(["format", "unit"])
        tool = function_tool(name, "Get the weather for a city", {key: "string", unit: "string"})
        tool["function"]["parameters"]["properties"][unit]["enum"] = ["celsius", "fahrenheit"]
        arguments[unit] = "celsius"
    question = random.choice(
        [
            "What is the weather in {}?",
            "What is the weather today in {}?",
            "What's the weather like in {}?",
            "How is the weather in {}?",
            "Is it warm in {}?",
            "weather in {}",
            "Tell me the weather in {}.",
        ]
    ).format(city)
    degrees, sky = random.randint(-9, 35), random.choice(["sunny", "cloudy", "rainy", "windy"])
    result = random.choice(
        [
            json.dumps({"temperature": degrees, "condition": sky}),
            f"{degrees} degrees and {sky}",
            f"{degrees} degrees, {sky}",
        ]
    )
    return Exercise(
        tool, question, arguments, result, f"It is {degrees} degrees and {sky} in {city}."
    )


def clock(random: Random) -> Exercise:
    city = drawn(random, "cities")
    key = random.choice(["city", "location", "place"])
    name = random.choice(["get_time", "get_current_time", "clock", "time_in"])
    tool = function_tool(name, "Get the time in a city", {key: "string"})
    question = random.choice(
        ["What time is it in {}?", "Tell me the time in {}.", "What is the time in {}?"]
    ).format(city)
    time = f"{random.randint(0, 23):02}:{random.randint(0, 59):02}"
    result = random.choice([time, json.dumps({"time": time})])
    return Exercise(tool, question, {key: city}, result, f"It is {time} in {city}.")


def addition(random: Random) -> Exercise:
    first, second = random.randint(1, 99), random.randint(1, 99)
    keys = random.choice([("a", "b"), ("first", "second"), ("x", "y")])
    name = random.choice(["add", "add_two_numbers", "sum", "add_numbers"])
    tool = function_tool(name, "Add two numbers", dict.fromkeys(keys, "integer"))
    question = random.choice(
        ["What is {} plus {}?", "What is {} + {}?", "Add {} and {}.", "How much is {} plus {}?"]
    ).format(first, second)
    total = str(first + second)
    result = random.choice([total, json.dumps({"result": first + second})])
    return Exercise(
        tool,
        question,
        dict(zip(keys, (first, second), strict=True)),
        result,
        f"The result is {total}.",
    )


def calculator(random: Random) -> Exercise:
    first, second = random.randint(2, 99), random.randint(2, 99)
    sign, total = random.choice([("*", first * second), ("-", first - second)])
    name = random.choice(["calculator", "calculate", "evaluate"])
    key = random.choice(["expression", "formula"])
    tool = function_tool(name, "Evaluate an arithmetic expression", {key: "string"})
    question = random.choice(
        ["What is {} {} {}?", "Calculate {} {} {}.", "Work out {} {} {}."]
    ).format(first, sign, second)
    arguments = {key: f"{first} {sign} {second}"}
    return Exercise(tool, question, arguments, str(total), f"The result is {total}.")


def message(random: Random) -> Exercise:
    tables = load("tables")
    name, words = drawn(random, "names"), " ".join(random.choices(tables["words"], k=2))
    tool_name = random.choice(["send_message", "send_mail", "tell"])
    keys = random.choice([("to", "text"), ("recipient", "message")])
    tool = function_tool(tool_name, "Send a message to a person", dict.fromkeys(keys, "string"))
    question = random.choice(["Send {} the message {}.", "Tell {}: {}"]).format(name, words)
    arguments = dict(zip(keys, (name, words), strict=True))
    return Exercise(tool, question, arguments, "sent", f"I have sent the message to {name}.")


def timer(random: Random) -> Exercise:
    minutes = random.randint(1, 59)
    tool = function_tool(
        random.choice(["set_timer", "start_timer"]), "Start a timer", {"minutes": "integer"}
    )
    question = random.choice(
        ["Set a timer for {} minutes.", "Start a timer of {} minutes.", "Wake me in {} minutes."]
    ).format(minutes)
    answer = f"The timer will ring in {minutes} minutes."
    return Exercise(tool, question, {"minutes": minutes}, "ok", answer)


def search(random: Random) -> Exercise:
    word = drawn(random, "words")
    key = random.choice(["query", "q"])
    name = random.choice(["search", "web_search", "find"])
    tool = function_tool(name, "Search for a word", {key: "string"})
    question = random.choice(["Search for {}.", "Look up {}.", "Find {}."]).format(word)
    found = random.randint(0, 99)
    return Exercise(tool, question, {key: word}, f"{found} results", f"I found {found} results.")


KINDS: list[Callable[[Random], Exercise]] = [
    weather, clock, addition, calculator, message, timer, search
]  # fmt: skip
