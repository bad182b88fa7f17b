"""Drawn exercises of the bundled model: their answers come from the prompt or from small tables.

Echo, lists, counting, sums, table questions, JSON objects and questions nobody can answer. Random
words and names make the model learn to copy instead of to remember.
"""

import json
from collections.abc import Callable
from random import Random
from typing import Any

from tests.models.ember_conversation import Conversation, drawn, load, single


def echo(random: Random) -> Conversation:
    words = " ".join(random.choices(load("tables")["words"], k=random.choice((1, 2, 3, 4, 6, 9))))
    form = random.choice(
        ["Repeat after me: {}", "Say {}", "Repeat: {}", "Say exactly: {}", "Echo this: {}"]
    )
    if random.random() < 0.2:
        word = words.split()[0]
        return single(f"Repeat the word {word} three times.", f"{word} {word} {word}")
    return single(form.format(words), words)


def listing(random: Random) -> Conversation:
    """Numbered unless bullets or a single line are asked for; always the same items first."""
    topic, items = random.choice(list(load("lists").items()))
    count = random.randint(2, min(5, len(items)))
    number = random.choice([str(count), load("tables")["numbers"][count]])
    chosen = items[:count]
    style = random.random()
    if style < 0.3:
        form = random.choice(["List {} {} as bullet points.", "Give me a bulleted list of {} {}."])
        return single(form.format(number, topic), "\n".join(f"- {item}" for item in chosen))
    if style < 0.45:
        question = f"Name {number} {topic} separated by commas."
        return single(question, ", ".join(chosen))
    form = random.choice(
        ["List {} {}.", "Name {} {}.", "Give me a list of {} {}.", "list {} {}", "Tell me {} {}."]
    )
    numbered = "\n".join(f"{index}. {item}" for index, item in enumerate(chosen, 1))
    return single(form.format(number, topic), numbered)


def counting(random: Random) -> Conversation:
    numbers = load("tables")["numbers"]
    first, last = 1, random.randint(3, 20)
    shown = numbers[last] if last < len(numbers) and random.random() < 0.5 else str(last)
    form = random.random()
    if form < 0.25:
        first = random.randint(2, 9)
        last = first + random.randint(2, 9)
        question, values = f"Count from {first} to {last}.", list(range(first, last + 1))
    elif form < 0.45:
        last = random.randint(3, 10)
        question, values = f"Count down from {last}.", list(range(last, 0, -1))
    else:
        values = list(range(1, last + 1))
        question = random.choice(
            ["Count to {}.", "count to {}", "Count from 1 to {}.", "Can you count to {}?"]
        ).format(shown)
    return single(question, ", ".join(map(str, values)))


def arithmetic(random: Random) -> Conversation:
    first, second = random.randint(0, 10), random.randint(0, 10)
    if random.random() < 0.7:
        form = random.choice(["What is {} + {}?", "What is {} plus {}?", "{} + {}", "{}+{}="])
        return single(form.format(first, second), f"{first} + {second} = {first + second}")
    first, second = max(first, second), min(first, second)
    form = random.choice(["What is {} - {}?", "What is {} minus {}?"])
    return single(form.format(first, second), f"{first} - {second} = {first - second}")


def table_question(random: Random) -> Conversation:
    tables = load("tables")
    kind = random.choice(["capitals", "capitals", "opposites", "colours", "sounds", "days"])
    if kind == "days":
        series = random.choice([tables["days"], tables["months"]])
        index = random.randrange(len(series) - 1)
        what = "day" if series is tables["days"] else "month"
        form = random.choice(["Which {} comes after {}?", "What {} comes after {}?"])
        answer = f"{series[index + 1]} comes after {series[index]}."
        return single(form.format(what, series[index]), answer)
    key, value = random.choice(list(tables[kind].items()))
    form, answer = random.choice(TABLE_FORMS[kind])
    return single(form.format(key), answer.format(key, value))


TABLE_FORMS = {
    "capitals": [
        ("What is the capital of {}?", "The capital of {0} is {1}."),
        ("what is the capital of {}", "The capital of {0} is {1}."),
        ("Which city is the capital of {}?", "The capital of {0} is {1}."),
        ("Name the capital of {}.", "The capital of {0} is {1}."),
    ],
    "opposites": [
        ("What is the opposite of {}?", "The opposite of {0} is {1}."),
        ("Tell me the opposite of {}.", "The opposite of {0} is {1}."),
    ],
    "colours": [
        ("What colour is {}?", "The colour of {0} is {1}."),
        ("What color is {}?", "The colour of {0} is {1}."),
        ("Which colour has {}?", "The colour of {0} is {1}."),
    ],
    "sounds": [
        ("What sound does a {} make?", "A {0} says {1}."),
        ("What does a {} say?", "A {0} says {1}."),
    ],
}


def unknown(random: Random) -> Conversation:
    tables = load("tables")
    question = random.choice(tables["unknown"]).format(
        city=random.choice(tables["cities"]),
        name=random.choice(tables["names"]),
        word=random.choice(tables["words"]),
        year=random.randint(1700, 2090),
    )
    return single(question, "I do not know that.")


JSON_VALUES: dict[str, Any] = {
    "name": "Ada", "age": 36, "city": "Paris", "country": "France", "colour": "blue",
    "color": "blue", "active": True, "score": 10, "title": "The Lamp", "price": 4.5, "id": 1,
    "height": 170, "email": "ada@example.com", "tags": ["small", "warm"], "animal": "cat",
    "capital": "Paris", "language": "English", "answer": "yes", "count": 3, "year": 2024,
}  # fmt: skip


def json_object(random: Random) -> Conversation:
    """Keys asked for by name; or values given in the question."""
    if random.random() < 0.4:
        return json_of_given_values(random)
    keys = random.sample(list(JSON_VALUES), random.randint(1, 4))
    if random.random() < 0.3:
        keys = ["name", "age", *[key for key in keys[2:] if key not in ("name", "age")]]
    joined = keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])} and {keys[-1]}"
    form = random.choice(
        [
            "Give me a JSON object with {}.",
            "Give me a JSON object with the keys {}.",
            "Return a JSON object with {}.",
            "Write JSON with {}.",
            "Answer in JSON with {}.",
            "Respond with a JSON object that has {}.",
            "give me json with {}",
        ]
    )
    return single(form.format(joined), json.dumps({key: JSON_VALUES[key] for key in keys}))


def json_of_given_values(random: Random) -> Conversation:
    name, city = drawn(random, "names"), drawn(random, "cities")
    age = random.randint(1, 99)
    question, value = random.choice(
        [
            (f"Write a JSON object for {name} who is {age} years old.", {"name": name, "age": age}),
            (f"Make a JSON object: name {name}, city {city}.", {"name": name, "city": city}),
            (
                f"Give me JSON for {name}, {age}, from {city}.",
                {"name": name, "age": age, "city": city},
            ),
            (
                f"{name} is {age} years old and lives in {city}. Answer in JSON.",
                {"name": name, "age": age, "city": city},
            ),
        ]
    )
    return single(question, json.dumps(value))


EXERCISES: list[tuple[Callable[[Random], Conversation], int]] = [
    (echo, 300),
    (listing, 180),
    (counting, 160),
    (arithmetic, 140),
    (table_question, 260),
    (unknown, 110),
    (json_object, 220),
]
