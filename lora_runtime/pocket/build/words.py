"""What people type, mapped to the few words that the pocket klein knows: kittens are cats, the ocean is under the sea.

Both tokenizers, the denoiser's and the judge's, carry this table as a normalizer in their `tokenizer.json`, so plain
diffusers and transformers read prompts the same way. Articles, prepositions and words for a picture say nothing here
and are dropped; a word in no list becomes the unknown token.
"""

from tokenizers import Regex, normalizers

FORMS: dict[str, tuple[str, ...]] = {
    "cat": ("cats", "kitten", "kittens", "kitty", "pussycat", "tomcat", "feline"),
    "bunny": ("bunnies", "rabbit", "rabbits", "hare", "hares"),
    "owl": ("owls", "owlet", "owlets"),
    "fish": ("fishes", "goldfish"),
    "snail": ("snails",),
    "mushroom": ("mushrooms", "toadstool", "toadstools", "fungus"),
    "cactus": ("cacti", "cactuses", "succulent"),
    "house": ("houses", "home", "homes", "cottage", "cottages", "cabin", "hut"),
    "boat": ("boats", "sailing boat", "sailing ship", "sailboat", "sailboats", "ship", "ships", "yacht", "vessel"),
    "rocket": ("rockets", "rocket ship", "rocketship", "space ship", "spaceship", "spaceships", "spacecraft"),
    "balloon": ("balloons", "hot air balloon", "hot air balloons"),
    "teapot": ("teapots", "tea pot", "tea kettle", "kettle", "kettles"),
    "red": ("crimson", "scarlet", "ruby"),
    "orange": ("amber", "tangerine"),
    "yellow": ("lemon",),
    "green": ("lime", "emerald"),
    "teal": ("turquoise", "cyan", "aqua"),
    "blue": ("navy", "azure"),
    "purple": ("violet", "lilac", "lavender"),
    "pink": ("magenta", "rose"),
    "brown": ("chocolate", "tan"),
    "white": ("ivory",),
    "meadow": ("meadows", "field", "fields", "grass", "grassland", "garden", "park", "lawn"),
    "beach": ("beaches", "by the sea", "by the ocean", "seaside", "seashore", "shore", "coast"),
    "desert": ("deserts", "dunes", "sahara"),
    "snow": ("snowy", "winter", "wintry"),
    "forest": ("forests", "wood", "woods", "woodland"),
    "city": ("cities", "town", "downtown", "street"),
    "night": ("night sky", "night time", "nighttime", "starry night", "midnight", "moonlight"),
    "underwater": ("under the sea", "under the ocean", "under water", "undersea", "sea", "ocean"),
    "small": ("tiny", "little", "mini"),
    "medium": ("medium sized", "middle sized"),
    "large": ("big", "huge", "giant"),
    "center": ("middle", "centre", "centered", "centred"),
    "left": ("left side", "left hand side"),
    "right": ("right side", "right hand side"),
    "top": ("high up", "up high"),
    "bottom": ("low down", "down low"),
}
"""A word of the pocket klein -> other ways to say it."""

SILENT = (
    *("a", "an", "the", "this", "that", "some", "one", "is", "are", "with", "and", "it", "its"),
    *("in", "on", "at", "of", "to", "inside", "into", "near", "by", "under"),
    *("picture", "photo", "photograph", "image", "drawing", "illustration", "painting", "render"),
)
"""Words that change nothing."""


UNKNOWN = "something"
"""A word in no list, for captions that should hold one."""


def build_normalizer() -> normalizers.Sequence:
    """Build the table as a normalizer: lower case, punctuation out, phrases before single words."""
    steps = [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"[^\w]+"), " ")]
    for spaced in (True, False):
        for word, forms in FORMS.items():
            chosen = sorted((form for form in forms if (" " in form) is spaced), key=len, reverse=True)
            if chosen:
                steps.append(normalizers.Replace(Regex(rf"\b(?:{'|'.join(chosen)})\b"), word))
    steps.append(normalizers.Replace(Regex(rf"\b(?:{'|'.join(SILENT)})\b"), ""))
    steps += [normalizers.Replace(Regex(r" +"), " "), normalizers.Strip()]
    return normalizers.Sequence(steps)


def read_words(prompt: str) -> list[str]:
    """List what is left of a prompt: words of `FORMS`, and those that nobody knows."""
    return _NORMALIZER.normalize_str(prompt).split()


_NORMALIZER = build_normalizer()
