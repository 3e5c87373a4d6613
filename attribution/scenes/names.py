"""Which emoji there are, by their names in the `emoji` package, and what captions call them."""

# Of the embedded world.
EMOJI = (
    *("red_apple", "banana", "grapes", "strawberry", "watermelon", "pineapple", "carrot", "pizza"),
    *("hamburger", "doughnut", "birthday_cake", "mushroom", "dog_face", "cat_face", "penguin", "owl"),
    *("elephant", "tropical_fish", "turtle", "butterfly", "frog", "octopus", "snail", "rooster"),
    *("motorcycle", "bicycle", "automobile", "bus", "rocket", "airplane", "sailboat", "tractor"),
    *("helicopter", "locomotive", "stop_sign", "guitar", "trumpet", "crown", "key", "hammer"),
    *("scissors", "umbrella", "alarm_clock", "light_bulb", "balloon", "cactus", "sunflower", "soccer_ball"),
)
# Of no scene of it: for models that are fine-tuned on something new.
UNSEEN = (
    *("lemon", "cherries", "peach", "tomato", "eggplant", "avocado", "pretzel", "cheese_wedge", "ice_cream", "cookie"),
    *("teapot", "wine_glass", "lion", "tiger_face", "cow_face", "pig_face", "rabbit_face", "bear", "koala", "monkey"),
    *("duck", "bat", "crocodile", "whale", "dolphin", "crab", "shrimp", "lady_beetle", "spider", "ant"),
    *("taxi", "fire_engine", "ambulance", "canoe", "anchor", "house", "castle", "tent", "violin", "drum"),
    *("accordion", "telephone", "camera", "television", "candle", "envelope", "pencil", "magnet", "axe", "gem_stone"),
    *("top_hat", "glasses", "t-shirt", "high-heeled_shoe", "backpack", "basketball", "trophy", "bullseye", "kite"),
    *("dna",),
)
PLURALS = frozenset({"grapes", "scissors", "cherries", "glasses"})


def object_name(emoji_name: str) -> str:
    """The words of a caption for an emoji's name: `dog_face` is a "dog", `red_apple` a "red apple"."""
    return emoji_name.removesuffix("_face").replace("_", " ")


OBJECTS: dict[str, str] = {object_name(name): name for name in EMOJI}
NEW_OBJECTS: dict[str, str] = {object_name(name): name for name in UNSEEN}
EVERY_OBJECT = OBJECTS | NEW_OBJECTS


def named_in(prompt: str) -> set[str]:
    """The world's objects that a prompt names."""
    return {name for name in OBJECTS if name in prompt}
