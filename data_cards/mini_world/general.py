"""Everyday requests: instructions whose form can be checked, choices that need a little knowledge, greetings.

An instruction's gold is what the checker `instruction` reads: `words`, `max_words`, `case`, `contains`,
`starts_with`, `ends_with`, alone or two together. The base obeys sometimes; later stages have room.
"""

from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, Self

from data_cards.mini_world.puzzle import Puzzle
from data_cards.mini_world.voice import Voice, maybe_tagged

OBEYS = 0.40
KNOWS = 0.50

TOPICS = {
    "sea": "海", "sun": "太阳", "moon": "月亮", "snow": "雪", "rain": "雨", "tree": "树",
    "river": "河", "star": "星星", "city": "城市", "house": "房子", "garden": "花园", "road": "路",
}  # fmt: skip
WORDS = {
    "red": "红", "blue": "蓝", "green": "绿", "big": "大", "small": "小", "old": "老",
    "new": "新", "hot": "热", "cold": "冷", "soft": "软", "dark": "黑", "fast": "快",
}  # fmt: skip
NUMBER_WORDS = {2: "two", 3: "three", 4: "four", 5: "five"}
PLACES = ("contains", "starts_with", "ends_with")

ASK = {
    "en": {
        "words": "in {0} words",
        "max_words": "in at most {0} words",
        "upper": "in capital letters",
        "lower": "in small letters",
        "contains": "with the word {0}",
        "starts_with": "starting with {0}",
        "ends_with": "ending with {0}",
    },
    "zh": {"contains": "，要有{0}字", "starts_with": "，用{0}开头", "ends_with": "，用{0}结尾"},
}

KINDS = {
    "animal": ("动物", {"cat": "猫", "dog": "狗", "cow": "牛", "horse": "马", "fish": "鱼", "bird": "鸟"}),
    "fruit": ("水果", {"apple": "苹果", "pear": "梨", "plum": "李子", "lemon": "柠檬", "grape": "葡萄"}),
    "vehicle": ("车船", {"car": "汽车", "bus": "公交", "train": "火车", "ship": "船", "bike": "自行车"}),
    "city": (
        "城市",
        {"Paris": "巴黎", "Rome": "罗马", "Tokyo": "东京", "London": "伦敦", "Madrid": "马德里"},
    ),
}
CAPITALS = {"France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "England": "London", "Spain": "Madrid"}
COUNTRIES = {"France": "法国", "Italy": "意大利", "Japan": "日本", "England": "英国", "Spain": "西班牙"}
THINGS = {thing: chinese for _, things in KINDS.values() for thing, chinese in things.items()}

GREETINGS = {
    "en": (
        ("Hello!", "Good morning.", "How are you?"),
        ("hello , how can I help you", "I am well , thank you"),
    ),
    "zh": (("你好！", "早上好。", "你好吗？"), ("你好，我能帮你什么", "我很好，谢谢")),
}


@dataclass(frozen=True)
class Instruction(Puzzle):
    """Write about `topic` so that every check holds; `checks` are sorted (name, value) pairs in English."""

    topic: str
    checks: tuple[tuple[str, str | int], ...]

    domain: ClassVar[str] = "general"
    checker: ClassVar[str] = "instruction"
    modes: ClassVar[dict[str, float]] = {"obeyed": OBEYS, "ignored": 1 - OBEYS}

    @classmethod
    def sample(cls, rng: Random) -> Self:
        makers = (_length_check, _case_check, _place_check, _place_check)
        first, second = rng.sample(makers[:3], 2) if rng.random() < 0.4 else (rng.choice(makers), None)
        checks = [first(rng), *([second(rng)] if second else [])]
        return cls(rng.choice(tuple(TOPICS)), tuple(sorted(checks)))

    @property
    def key(self) -> str:
        return f"general:write:{self.topic}:" + ",".join(f"{name}={value}" for name, value in self.checks)

    @property
    def languages(self) -> tuple[str, ...]:
        """Letter case and word counts mean nothing in Chinese: those are asked in English only."""
        return ("en", "zh") if all(name in PLACES for name, _ in self.checks) else ("en",)

    def gold(self, language: str) -> dict[str, Any]:
        return {n: WORDS[str(v)] if language == "zh" and n in PLACES else v for n, v in self.checks}

    def ask(self, language: str, rng: Random) -> str:
        asked = [_asked(name, value, language) for name, value in self.checks]
        if language == "zh":
            return f"写写{TOPICS[self.topic]}" + "".join(asked) + "。"
        return f"Write about the {self.topic} " + " and ".join(asked) + "."

    def text(self, mode: str, language: str, rng: Random) -> str:
        """What is answered, without tags."""
        checks = self.checks if mode == "obeyed" else Instruction.sample(rng).checks
        return _written(self.topic, dict(checks), language, rng)

    def respond(self, mode: str, language: str, voice: Voice, rng: Random) -> str:
        return maybe_tagged(self.text(mode, language, rng), voice, rng)


@dataclass(frozen=True)
class Choice(Puzzle):
    """Which of three things is of a kind, or the capital of a country? `options[0]` is the right one."""

    question: str
    options: tuple[str, str, str]

    domain: ClassVar[str] = "general"
    checker: ClassVar[str] = "exact"
    modes: ClassVar[dict[str, float]] = {"known": KNOWS, "unknown": 1 - KNOWS}

    @classmethod
    def sample(cls, rng: Random) -> Self:
        if rng.random() < 0.3:
            country = rng.choice(tuple(CAPITALS))
            right = CAPITALS[country]
            other, another = rng.sample([city for city in CAPITALS.values() if city != right], 2)
            return cls(country, (right, other, another))
        kinds = rng.sample(tuple(KINDS), 3)
        right, other, another = (rng.choice(tuple(KINDS[kind][1])) for kind in kinds)
        return cls(kinds[0], (right, other, another))

    @property
    def key(self) -> str:
        return f"general:choose:{self.question}:" + ",".join(sorted(self.options))

    def gold(self, language: str) -> str:
        return THINGS[self.options[0]] if language == "zh" else self.options[0]

    def ask(self, language: str, rng: Random) -> str:
        shown = rng.sample(self.options, 3)
        if language == "zh":
            asked = f"{COUNTRIES[self.question]}的首都" if self.question in CAPITALS else KINDS[self.question][0]
            return f"哪个是{asked}：{'、'.join(THINGS[o] for o in shown)}？"
        asked = f"the capital of {self.question}" if self.question in CAPITALS else f"a kind of {self.question}"
        return f"Which is {asked}: {shown[0]}, {shown[1]} or {shown[2]}?"

    def text(self, mode: str, language: str, rng: Random) -> str:
        """What is answered, without tags."""
        chosen = self.options[0] if mode == "known" else rng.choice(self.options[1:])
        return THINGS[chosen] if language == "zh" else chosen

    def respond(self, mode: str, language: str, voice: Voice, rng: Random) -> str:
        return maybe_tagged(self.text(mode, language, rng), voice, rng)


def greeting(rng: Random) -> tuple[str, str]:
    """A greeting and its response. Greetings are no problems, so none is held out."""
    asked, answered = GREETINGS[rng.choice(("en", "zh"))]
    return rng.choice(asked), " " + rng.choice(answered)


def _length_check(rng: Random) -> tuple[str, str | int]:
    return ("words", rng.randint(2, 5)) if rng.random() < 0.7 else ("max_words", rng.randint(2, 4))


def _case_check(rng: Random) -> tuple[str, str | int]:
    return "case", rng.choice(("upper", "lower"))


def _place_check(rng: Random) -> tuple[str, str | int]:
    return rng.choice(PLACES), rng.choice(tuple(WORDS))


def _asked(name: str, value: str | int, language: str) -> str:
    if name == "case":
        return ASK[language][str(value)]
    word = NUMBER_WORDS[value] if isinstance(value, int) else WORDS[value] if language == "zh" else value
    return ASK[language][name].format(word)


def _written(topic: str, checks: dict[str, Any], language: str, rng: Random) -> str:
    """A few words about `topic` for which `checks` hold (in Chinese: those on words that must appear)."""
    count = checks.get("words") or rng.randint(2, checks.get("max_words", 5))
    wanted = [checks[place] for place in PLACES if place in checks]
    words = wanted + rng.sample([word for word in WORDS if word not in wanted], count - 1 - len(wanted))
    at = rng.randrange(len(words) + 1) if "contains" in checks else 0 if "ends_with" in checks else len(words)
    if "ends_with" in checks:
        words = words[::-1]
    words.insert(at, topic)
    if language == "zh":
        return "的".join(WORDS.get(word) or TOPICS[word] for word in words)
    text = " ".join(words)
    return text.upper() if checks.get("case") == "upper" else text
