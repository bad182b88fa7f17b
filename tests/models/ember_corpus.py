"""One epoch of training conversations for the bundled model, drawn from the corpus and exercises.

`draw_conversations` is the only entry: written facts and chats in every phrasing, exercises, system
messages, dialogues, personas and tool calls. The wording lives in `corpus/*.json`.
"""

from collections.abc import Iterator
from random import Random

from tests.models.ember_conversation import Conversation, Message, drawn, load, single, turn
from tests.models.ember_exercises import EXERCISES
from tests.models.ember_tools import tool_conversation


def draw_conversations(random: Random) -> list[Conversation]:
    """One epoch in random order; some get a neutral system message, some are joined to dialogues."""
    talk = list(written(random))
    plain = list(talk)
    for exercise, count in EXERCISES:
        plain.extend(exercise(random) for _ in range(count))
    epoch = [with_system(item, random) if random.random() < 0.25 else item for item in plain]
    epoch.extend(dialogue(plain, random) for _ in range(250))
    epoch.extend(persona(plain, random) for _ in range(120))
    epoch.extend(tool_conversation(talk, random) for _ in range(450))
    random.shuffle(epoch)
    return epoch


def written(random: Random) -> Iterator[Conversation]:
    """Every phrasing of every fact and chat, as written and varied, and the stories."""
    for entry in [*load("facts"), *load("chats")]:
        for question in entry["questions"]:
            yield single(question, entry["answer"])
            yield single(varied(question, random), entry["answer"])
    for subject, story in load("stories").items():
        for form in random.sample(STORY_FORMS, 3):
            yield single(form.format(subject), story)


STORY_FORMS = [
    "Tell me a story about a {}.",
    "Write a short story about a {}.",
    "Write a story about a {}",
    "Tell me a short story about a {}",
    "Can you tell me a story about the {}?",
]


def varied(question: str, random: Random) -> str:
    """The same question as a hurried or a polite person types it."""
    bare = question.rstrip(".?!")
    lowered = bare[0].lower() + bare[1:]
    return random.choice(
        [
            bare,
            lowered,
            lowered + "?",
            question.lower(),
            f"Please answer: {question}",
            f"{question} Please be brief.",
            f"Hello! {question}",
            f"I have a question. {question}",
            f"Tell me: {lowered}?",
        ]
    )


def with_system(item: Conversation, random: Random) -> Conversation:
    system = {"role": "system", "content": random.choice(load("tables")["systems"])}
    return Conversation((system, *item.messages))


def dialogue(plain: list[Conversation], random: Random) -> Conversation:
    """Two to four turns one after the other, sometimes with a name to remember."""
    turns = [list(random.choice(plain).messages) for _ in range(random.randint(2, 4))]
    if random.random() < 0.4:
        told, asked = remembered(random)
        turns = [list(told), *turns[: random.randint(0, 1)], list(asked)]
    return Conversation(tuple(message for pair in turns for message in pair))


def remembered(random: Random) -> tuple[tuple[Message, Message], tuple[Message, Message]]:
    """Something said early and asked for later."""
    name, city = drawn(random, "names"), drawn(random, "cities")
    word = random.choice(load("tables")["words"])
    return random.choice(
        [
            (
                turn(
                    random.choice(["My name is {}.", "I am {}.", "Hi, I am {}"]).format(name),
                    f"Nice to meet you, {name}!",
                ),
                turn(
                    random.choice(["What is my name?", "Who am I?", "Do you know my name?"]),
                    f"Your name is {name}.",
                ),
            ),
            (
                turn(f"Remember the word {word}.", f"I will remember the word {word}."),
                turn("Which word did I tell you?", f"The word is {word}."),
            ),
            (
                turn(f"I live in {city}.", f"{city} sounds like a nice place to live."),
                turn("Where do I live?", f"You live in {city}."),
            ),
        ]
    )


def persona(plain: list[Conversation], random: Random) -> Conversation:
    """A system message that must change the answer."""
    if random.random() < 0.3:
        item = random.choice(plain)
        question, answer = (message["content"] for message in item.messages)
        pirate = {"role": "system", "content": "You are a pirate. Begin every answer with Arr!"}
        return Conversation((pirate, *turn(question, f"Arr! {answer}")))
    name = drawn(random, "names")
    system = random.choice(["You are {}.", "Your name is {}.", "You are {}, a helpful assistant."])
    asked = random.choice(["Who are you?", "What is your name?", "who are you", "Hi, who are you?"])
    answer = f"My name is {name}." if "name" in asked else f"I am {name}."
    return Conversation(({"role": "system", "content": system.format(name)}, *turn(asked, answer)))
