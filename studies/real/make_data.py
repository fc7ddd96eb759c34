#!/usr/bin/env python3
"""Makes the data of the study on real backbones.

    python3 studies/real/make_data.py SOURCE OUT [--seed 0]

SOURCE is the folder that studies/real/packages/make.sh made. Pictures are not copied: image paths are relative to SOURCE/data.
README.md beside this script says what the files hold. Needs only Python's standard library.
"""
import argparse
import collections
import functools
import hashlib
import json
import math
import os
import re
import sys

EMOJI = ("fluent3d", "noto64")
SETS = EMOJI + ("stamps",)
LICENSES = {
    "fluent3d": "MIT (npm @lobehub/fluent-emoji-3d 1.1.0; names and tags: emojibase-data 17.0.0, MIT)",
    "noto64": "package MIT (npm emoji-datasource-google 16.0.0; names and tags: emojibase-data 17.0.0, MIT)",
    "stamps": "GPL-2 (Debian tuxpaint-stamps-default)",
}
SPLITS = (("train", 0.7), ("validation", 0.8), ("eval", 1.0))
CHOICES = 20
LIST_QUESTION = "What is this a picture of?"
LENS_QUESTION = "Which words describe this picture?"

# The kind of thing, in plain words, for each emoji subgroup. Subgroups that are not named here are left out: their
# names are text or cannot be seen (letters, digits, country flags, zodiac signs, buttons, skin tones, ..).
KINDS = {
    "face": "smiling, affectionate, with tongue, with hands, neutral / skeptical, sleepy, unwell, with hats, "
            "with glasses, concerned, negative, cat faces, monkey faces",
    "fantasy figure": "costumed & creatures, fantasy",
    "heart": "hearts",
    "comic sign": "emotions",
    "hand": "fingers open, hand signs, finger pointing, fingers closed, hands, hand props",
    "body part": "body parts",
    "person": "people, gestures, roles & careers, family, people & body:activities, resting, people symbols",
    "athlete": "athletics",
    "mammal": "mammals",
    "bird": "birds",
    "amphibian": "amphibians",
    "reptile": "reptiles",
    "sea animal": "marine life",
    "bug": "bugs",
    "flower": "flowers",
    "plant": "other plants",
    "fruit": "fruit",
    "vegetable": "vegetables",
    "dish": "cooked / prepared, asian",
    "sweet food": "sweets & candy",
    "drink": "drink",
    "tableware": "dishware",
    "place": "globes & maps, geographic locations, other places",
    "building": "buildings, religious buildings",
    "land transport": "ground transportation",
    "water transport": "water transportation",
    "air transport": "air transportation",
    "clock": "time",
    "sky or weather": "weather",
    "celebration": "events & holidays",
    "award": "award medals",
    "sport": "sports",
    "game or toy": "games & hobbies",
    "art or craft": "arts & crafts",
    "clothing": "clothing",
    "sound": "sound",
    "music": "music, musical instruments",
    "phone": "phone",
    "computer": "computer",
    "light or film": "light, film & video",
    "book or paper": "books & paper",
    "money": "money",
    "mail": "mail",
    "office item": "writing, office supplies",
    "lock or key": "lock & keys",
    "tool": "tools",
    "science item": "science equipment",
    "medical item": "medical",
    "household item": "household items",
    "other object": "other objects, hotel",
    "warning sign": "warning symbols",
    "arrow": "arrows",
    "religious sign": "religious symbols",
    "shape": "shapes & colors",
    "flag": "other flags",
}
# The same for the folders of the stamps; the longest prefix counts. None: left out.
STAMP_KINDS = {
    "animals/amphibians": "amphibian", "animals/birds": "bird", "animals/dinosaur": "reptile",
    "animals/fish": "sea animal", "animals/insects": "bug", "animals/lizards": "reptile", "animals/mammals": "mammal",
    "animals/mammals/aquatic": "sea animal", "animals/mammals/bears/cartoon": "game or toy",
    "animals/mammals/bears/toys": "game or toy", "animals/marsupials": "mammal", "animals/shellfish": "sea animal",
    "clothes": "clothing", "food": "dish", "food/dessert": "sweet food", "food/fruit": "fruit", "food/nuts": "nut",
    "food/spices": "vegetable", "food/vegetables": "vegetable", "hobbies": "other object", "hobbies/music": "music",
    "household": "household item", "household/arttools": "office item", "household/dishes": "tableware",
    "household/tools": "tool", "medical": "medical item", "military": "person", "military/ammunition": None,
    "military/vehicles": None, "naturalforces": "sky or weather", "people": "person", "people/body_parts": "body part",
    "people/cartoon": "fantasy figure", "people/toys": "game or toy", "plants": "plant", "plants/flowers": "flower",
    "seasonal": "celebration", "space": "sky or weather", "sports": "sport", "symbols": None, "symbols/shapes": "shape",
    "town": "building", "town/flags": "flag", "town/roadsigns": None, "vehicles": "land transport",
    "vehicles/flight": "air transport", "vehicles/ship": "water transport",
}
# Stamps in folders of feasts, by the beginning of their id
STAMP_KINDS_BY_ID = {
    "seasonal_easter_bluebird": "bird", "seasonal_easter_bunny": "mammal", "seasonal_easter_chick": "bird",
    "seasonal_easter_daffodil": "flower", "seasonal_halloween_grave": "other object",
    "seasonal_christmas_Mince_Pie": "sweet food", "seasonal_christmas_Christmas_pudding": "sweet food",
    "seasonal_christmas_hard_candy": "sweet food", "seasonal_christmas_candy_cane": "sweet food",
    "seasonal_christmas_Candy_cane": "sweet food", "seasonal_christmas_Roast_turkey": "dish",
    "seasonal_candle": "light or film",
}
# Stamps whose captions are not the name of what is seen; None: left out.
STAMP_NAMES = {
    "animals_birds_cartoon_penguin_with_spider": "penguin with a spider", "animals_birds_cartoon_pengwin": "penguin",
    "animals_birds_cartoon_tux": "penguin", "animals_fish_bluegroper": "blue groper", "animals_fish_lionfish": "lionfish",
    "animals_fish_lobster": "spiny lobster", "animals_insects_cartoon_wings": None,
    "animals_mammals_bears_toys_edward_bear": "teddy bear",
    "animals_mammals_bovines_gnu-baby": "baby gnu", "animals_mammals_bovines_gnu-baby-stand": "baby gnu",
    "animals_mammals_bovines_sheep_lamb": "lamb", "food_fruit_orange_seville": "Seville orange",
    "food_vegetables_broccoli": "broccoli", "food_vegetables_tomato": "red tomato",
    "household_toilet": "toilet", "military_final-roll-call": None, "naturalforces_explosion": "explosion",
    "naturalforces_fire": "fire", "people_toys_grannysmith": "rag doll",
    "plants_mushrooms_cep-2": "cep", "plants_trees_holly_leaves": "holly leaves", "plants_trees_rambutan": "tree",
    "plants_flowers_appooppanthady": "Indian milkweed", "plants_flowers_adeenia": "desert rose",
    "plants_flowers_bolsom": "balsam flower", "seasonal_christmas_German_Christmas_toy": "wooden Christmas toy",
    "seasonal_christmas_Mince_Pie": "mince pie", "seasonal_halloween_grave-h": "tombstone",
    "seasonal_hanukkah_dreydl-gimmel": "dreidel", "seasonal_hanukkah_dreydl-hay": "dreidel",
    "seasonal_hanukkah_dreydl-nun": "dreidel", "seasonal_hanukkah_dreydl-shin": "dreidel",
    "seasonal_hanukkah_menorah": "menorah", "space_apollo_lander": "lunar lander", "space_spacewalk": "astronaut",
    "space_voyager2": "space probe", "space_moon_moon_3qt": "moon", "space_moon_moon_crescent": "crescent moon",
    "space_planets_0_sun": "sun", "space_planets_3_earth": "earth",
    "household_dishes_cartoon_pasta_pot": "large pot", "town_houses_cartoon_tower_round_flag": "round tower with a flag",
    "sports_australian_rules_football": "football",
    "town_cartoon_docks": "docks", "town_cartoon_fountain": "fountain", "town_uk_post_box": "post box",
    "town_houses_cartoon_cave_entrance": "cave entrance", "town_houses_cartoon_hunter": "hunter's house",
    "town_monuments_inukshuk-outline": "inukshuk", "town_monuments_inukshuk-photo": "inukshuk",
    "town_monuments_cartoon_eiffel_tower": "Eiffel tower", "vehicles_7spoke256": "wheel",
    "vehicles_emergency_sedan_police": None, "vehicles_farming_cartoon_tux_tractor": "penguin in a tractor",
    "vehicles_flight_cartoon_eddieCopter": "helicopter", "vehicles_flight_planes_cartoon_plane": "airplane",
    "vehicles_locomotive_cartoon_caboose": "caboose", "vehicles_locomotive_cartoon_tanker": "tank wagon",
    "vehicles_locomotive_cartoon_tender": "coal wagon", "vehicles_ship_cartoon_bathyscape": "research submarine",
}
# Emoji of one person in several genders or ages that do not differ by a gender sign, and code points without a sight.
SAME = {"1F57A": "1F483", "1F478": "1F934", "1F474": "1F9D3", "1F475": "1F9D3", "1F466": "1F9D2", "1F467": "1F9D2",
        "1F936": "1F385", "1F9D1-1F384": "1F385", "1F46D": "1F9D1-1F91D-1F9D1", "1F46B": "1F9D1-1F91D-1F9D1",
        "1F46C": "1F9D1-1F91D-1F9D1", "1FAC3": "1F930", "1FAC4": "1F930"}
# Emoji whose name is text, a time, or nothing that can be seen.
UNSEEN = {"hundred points", "ZZZ", "no one under eighteen", "foggy", "BACK arrow", "END arrow", "ON! arrow",
          "SOON arrow", "TOP arrow", "place of worship", "om", "Mx Claus", "moon viewing ceremony", "family"}
# Clearer names for some emoji.
EMOJI_NAMES = {
    "hourglass done": "hourglass", "hourglass not done": "hourglass", "mahjong red dragon": "mahjong tile",
    "locked": "closed lock", "unlocked": "open lock", "locked with pen": "lock with pen",
    "locked with key": "lock with key", "warning": "attention", "cooking": "fried egg in a pan", "camping": "campsite",
    "bowling": "bowling ball and pins", "tennis": "tennis racket and ball", "dizzy": "dizzy star",
    "dashing away": "puff of dust", "high voltage": "high voltage sign", "horse racing": "jockey on a horse",
    "kiss": "couple kissing", "construction": "construction barrier", "airplane departure": "departing airplane",
    "airplane arrival": "arriving airplane", "breast-feeding": "woman nursing a baby", "star-struck": "star-struck face",
    "rolling on the floor laughing": "face rolling with laughter", "ice": "ice cube", "mate": "mate drink",
    "american football": "American football", "chart increasing": "rising chart", "chart decreasing": "falling chart",
    "left speech bubble": "speech bubble", "performing arts": "theater masks", "dvd": "DVD", "dna": "DNA strand",
    "flower playing cards": "flower playing card", "flag in hole": "golf flag", "field hockey": "hockey stick",
    "ice hockey": "ice hockey stick", "lacrosse": "lacrosse stick", "ping pong": "ping pong paddle",
    "badminton": "badminton racket", "shaved ice": "bowl of shaved ice", "rightwards hand": "hand facing right",
    "leftwards hand": "hand facing left", "building construction": "building under construction",
    "speaker low volume": "speaker", "speaker medium volume": "speaker", "speaker high volume": "speaker",
}
# Other words for the same thing: one concept.
SYNONYMS = {
    "checkered flag": "chequered flag", "ladybug": "lady beetle", "fire truck": "fire engine", "lightbulb": "light bulb",
    "postbox": "post box", "fireman": "firefighter", "race car": "racing car", "garbage can": "wastebasket",
    "silver garbage can": "wastebasket", "male black rhino": "rhinoceros", "bee": "honeybee", "pigeon": "dove",
    "sweet yellow corn": "ear of corn", "chile pepper": "hot pepper", "green pepper": "bell pepper",
    "yellow pepper": "bell pepper", "kiwifruit": "kiwi fruit", "ginger": "ginger root", "garden spade": "shovel",
    "old key": "key", "football": "american football", "tennis ball": "tennis racket and ball",
    "tennis racket": "tennis racket and ball", "lightning bolt": "high voltage sign", "seagull": "silver gull",
    "sedan car": "automobile", "sport car": "automobile", "trophy cup": "trophy", "double decker bus": "bus",
    "mandarin orange": "tangerine", "sheep": "ewe", "lamb": "ewe", "dromedary": "camel", "drake": "duck",
    "brown hen": "chicken", "albino peahen": "peacock", "bunny": "rabbit", "floppy eared bunny": "rabbit",
    "baby chick": "chick", "hatching chick": "chick", "front facing baby chick": "chick", "mailbox": "post box",
    "musical note": "note", "red tomato": "tomato",
    "plant of common lavender": "lavender",
}
KIND_OF = {"skull": "body part", "skull and crossbones": "body part"}
# Too general to be a false answer.
GENERAL = {"person", "man", "woman", "child", "boy", "girl", "baby", "people", "family", "fish", "bird", "bug", "flower",
           "flowers", "two flowers", "some flowers", "tree", "animal", "blossom", "mouth", "eye", "eyes", "nose",
           "older person", "house", "houses", "building", "face without mouth", "smiling face", "star", "moon"}
PROPER = {"Christmas", "Santa", "Mrs.", "Japanese", "Tokyo", "Statue", "Mercury", "Venus", "Mars", "Jupiter", "Saturn",
          "Uranus", "Neptune", "Pluto", "T-Rex", "Eiffel"}
# Names of stuff or doings, which take no article (by their head).
STUFF = set("""bread flatbread bacon sushi popcorn butter salt rice milk fog ice wood soap yarn thread money dna broccoli
garlic poo spaghetti oden dango fondue falafel custard sake mate coral tennis badminton lacrosse hockey golf confetti
food lava candy corn lettuce lavender construction luggage chess fire hair mail cheese meat thyme racing tape
jewelry lightning art arts ping pong cricket liquid blood beverage polish tea sunrise sunset wireless anthurium hibiscus
balsam ginger root horseback massage x-ray hugging shrimp sheep beans paper metro biohazard""".split())
COUNTED = {"beverage", "root", "sheep", "shrimp", "x-ray", "tape", "hibiscus", "metro", "sunrise", "sunset", "candy"}
SINGULAR_S = {"clothes", "bus", "minibus", "trolleybus", "lens", "cactus", "octopus", "compass", "iris", "walrus", "lotus", "cypress",
              "abacus", "rhinoceros", "hippopotamus", "crocus", "tennis"}
PLURAL = {"people", "men", "women", "cattle", "teeth", "feet", "skis", "jeans", "maracas"}
PREPOSITIONS = {"with", "of", "on", "in", "without", "showing", "behind", "from", "for", "at", "over", "and", "blowing",
                "holding", "as", "pointing", "under", "playing", "dancing", "covered", "hatched", "inside", "taking", "making"}


def fail(message):
    raise SystemExit("make_data: " + message)


# --- hashes: every choice is decided by one, so that two runs write the same bytes ---

class Chance:
    def __init__(self, seed):
        self.seed = seed

    def number(self, *parts):
        text = "\x1f".join((str(self.seed),) + tuple(map(str, parts)))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")

    def share(self, *parts):
        return self.number(*parts) / 2.0 ** 64

    def pick(self, items, *parts):
        return items[self.number(*parts) % len(items)]

    def order(self, items, *parts, key=str):
        return sorted(items, key=lambda item: (self.number(*parts, key(item)), key(item)))


# --- words ---

def plain(text):
    for a, b in (("’", "'"), ("‘", "'"), ("“", ""), ("”", ""), ('"', ""), ("—", " - "), ("–", "-")):
        text = text.replace(a, b)
    return " ".join(text.split())


def singular(word):
    if word in SINGULAR_S or word.endswith(("ss", "us", "is")) or len(word) < 4:
        return word
    if word.endswith("ies") and len(word) > 5:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "xes", "sses", "toes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") else word


@functools.lru_cache(None)
def words(text):
    return tuple(singular(w) for w in re.findall(r"[a-zà-ÿ0-9]+", text.lower().replace("'s", "")))


@functools.lru_cache(None)
def normal(name):
    return " ".join(words(name))


def head(name):
    parts = name.split()
    for i, part in enumerate(parts):
        if i and part in PREPOSITIONS:
            return parts[i - 1]
    return parts[-1]


def a(name):
    """The name with its article, if it takes one."""
    first, last = name.split()[0], head(name).lower()
    if first in ("two", "some", "the") or first[0].isdigit():
        return ("a " + name) if name.startswith(("1st", "2nd", "3rd")) else name
    if first in PROPER and first not in ("Christmas", "Japanese", "T-Rex"):
        return ("the " + name) if first in ("Statue", "Eiffel") else name
    if first == "Tokyo":
        return name
    if name in ("sun", "earth", "milky way", "moon"):
        return "the " + name
    tail = name.split()[-1]
    if name in ("thumbs up", "thumbs down", "palms up together", "mount fuji", "pouring liquid", "canned food"):
        return name
    if name == "kaaba":
        return "the kaaba"
    if last in STUFF and last not in COUNTED or last in PLURAL:
        return name
    people = ("person", "man", "woman", "face", "cat", "monkey")
    if not (first in people and name != first) and tail in STUFF and head(name) == tail and tail not in COUNTED:
        return name
    if last.endswith("s") and not last.endswith(("ss", "us", "is", "'s")) and (
            last not in SINGULAR_S or last == "clothes"):
        return name
    vowel = (first[0].lower() in "aeiou" or first in ("x-ray", "hourglass"))
    vowel = vowel and not first.lower().startswith(("uni", "eur", "one-", "ukr", "ewe"))
    return ("an " if vowel else "a ") + name


def capital(text):
    return text[0].upper() + text[1:]


# --- reading ---

class Picture:
    def __init__(self, **fields):
        self.__dict__.update(fields)


def read_set(source, name):
    folder = os.path.join(source, "data", name)
    path = os.path.join(folder, "captions.jsonl")
    again = f"run `bash studies/real/packages/make.sh {source}` again, or give the folder that it made"
    if not os.path.isfile(path):
        fail(f"{path} is missing: {again}")
    rows = []
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line)
                    for key in ("id", "image", "caption", "category"):
                        if not isinstance(row[key], str) or not row[key]:
                            raise ValueError(key)
                except (ValueError, KeyError, TypeError):
                    fail(f"{path}, line {number}: not a record with id, image, caption and category: {again}")
                rows.append(row)
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{path} cannot be read ({error}): {again}")
    if not rows:
        fail(f"{path} is empty: {again}")
    for row in rows:
        image = os.path.join(folder, row["image"])
        if not os.path.isfile(image):
            fail(f"{image} is missing: {again}")
    if name in EMOJI:
        for key in ("tags", "group"):
            if not any(row.get(key) for row in rows):
                fail(f"{path} has no {key}: the questions need them; {again}")
    return rows


def emoji_name(row):
    name = plain(row["caption"])
    if ": " in name:
        who, what = name.split(": ", 1)
        if what == "facing right":
            return who + " facing right"
        if what == "bald":
            return "bald " + who
        if who in ("person", "man", "woman"):
            return who + " with " + ("a beard" if what == "beard" else what)
        return None  # families and couples that differ by their members
    if re.search(r"o'clock$|-thirty$", name) or name in UNSEEN or re.search(r"[,\"()!?#*]", name):
        return None
    name = EMOJI_NAMES.get(name, name)
    if row["category"] == "warning symbols":
        name += " sign"
    if row["category"] == "shapes & colors":  # sizes cannot be told in a picture of one shape
        name = re.sub(r"\b(large|small|medium-small|medium) ", "", name)
    return name.replace(" NO", " no")


def code_key(code):
    """The code point without variation selectors, gender signs and direction; a man or a woman counts as a person."""
    parts = [p for p in code.split("-") if p not in ("FE0F", "200D", "2640", "2642", "27A1")] or code.split("-")
    parts = ["1F9D1" if p in ("1F468", "1F469") else p for p in parts]
    key = "-".join(parts)
    return SAME.get(key, key)


def stamp_name(row):
    if row["id"] in STAMP_NAMES:
        return STAMP_NAMES[row["id"]]
    text = row["caption"].replace("—", ". ")
    text = plain(re.split(r"[.!?…]|\s\(|\s'", text.strip())[0]).strip(" -'")
    text = re.split(r",| is | are | lets | resembles | means ", text)[0]
    name = re.sub(r"^(an?|the|some|our|another) ", "", text, flags=re.I)
    if name == text and name and name.split()[0] not in PROPER:
        name = name[0].lower() + name[1:]
    name = name.replace("christmas", "Christmas").replace("european", "European")
    ok = 0 < len(name.split()) <= 5 and re.fullmatch(r"[A-Za-z0-9à-ÿ' -]+", name)
    return name if ok and not re.search(r"\b(this|we|you|your|to|tux|because)\b", name, re.I) else None


def stamp_base(row):
    base = row["id"][len(row["category"]) + 1:]
    base = re.sub(r"([a-z])([A-Z])", r"\1 \2", base)
    base = re.sub(r"[_-]|\d+", " ", base)
    base = [w for w in words(base) if w not in ("photo", "t") and len(w) > 1]
    return " ".join(base) if len("".join(base)) > 2 else None


def tag_words(tags):
    out = []
    for tag in tags:
        tag = plain(tag)
        if re.fullmatch(r"[a-z]{3,}( [a-z]{3,})?", tag) and tag not in out:
            out.append(tag)
    return out


def read(source):
    if not os.path.isdir(source):
        fail(f"{source} is not a folder: make it with `bash studies/real/packages/make.sh {source}`")
    kinds = {}
    for kind, names in KINDS.items():
        for name in re.split(r", (?!film)", names):
            kinds[name] = kind
    pictures, left_out = [], collections.Counter()
    emoji = {}
    for name in EMOJI:
        for row in read_set(source, name):
            kind = kinds.get(row.get("group", "") + ":" + row["category"])
            if kind is None and not (row["category"] == "activities"):
                kind = kinds.get(row["category"])
            label = emoji_name(row)
            kind = KIND_OF.get(label, kind)
            reason = ("skin tone" if row.get("skin") else "text or sign" if kind is None else
                      "name cannot be seen" if label is None else None)
            if reason:
                left_out[name, reason] += 1
                continue
            keys = ["code " + code_key(row["id"])]
            base = re.sub(r"^(oncoming|person|man|woman) (?=bus|police car|taxi|automobile)| facing right$", "", label)
            if row["group"] == "animals & nature":
                base = re.sub(r" face$", "", base)
            keys.append("name " + normal(base))
            p = Picture(set=name, id=row["id"], image=f"{name}/{row['image']}", name=label, kind=kind,
                        group=row["group"], tags=tag_words(row.get("tags", [])), keys=keys, base=normal(base))
            emoji.setdefault(normal(label), p)
            pictures.append(p)
    groups = {p.kind: p.group for p in pictures}
    singles = {}
    for p in pictures:
        if " " not in p.base and p.group in ("animals & nature", "food & drink"):
            singles.setdefault(p.base, p.group)
    for p in pictures:  # "polar bear" belongs to "bear"
        last = p.base.split()[-1]
        if singles.get(last) == p.group:
            p.keys.append("name " + last)
    single_names = {p.base for p in pictures if " " not in p.base} - {"person", "man", "woman", "star", "fire", "wood"}
    for row in read_set(source, "stamps"):
        path, kind = row["category"], None
        while path and path not in STAMP_KINDS:
            path = os.path.dirname(path)
        kind = next((k for i, k in STAMP_KINDS_BY_ID.items() if row["id"].startswith(i)), STAMP_KINDS.get(path))
        label = stamp_name(row)
        if kind is None or label is None:
            left_out["stamps", "text or sign" if kind is None else "name cannot be seen"] += 1
            continue
        twin = emoji.get(normal(label))
        folders = [singular(w) for w in row["category"].replace("_", "/").split("/") if w not in ("cartoon", "plastic")]
        tags = tag_words(folders + [w.lower() for w in label.split()])
        if twin:
            kind, tags = twin.kind, tag_words(twin.tags + tags)
        keys = ["name " + normal(label)]
        base = stamp_base(row)
        if base:
            keys.append("name " + base)
        for text in filter(None, (normal(label), base)):
            if text.split()[-1] in single_names:
                keys.append("name " + text.split()[-1])
        pictures.append(Picture(set="stamps", id=row["id"], image=f"stamps/{row['image']}", name=label, kind=kind,
                                group=groups.get(kind, "food & drink"), tags=tags, keys=keys, base=normal(label)))
    return pictures, left_out


def join_concepts(pictures):
    """Pictures that share a key are of one concept; its key is the smallest of them."""
    parent = {"name " + x: "name " + y for x, y in SYNONYMS.items()}

    def root(key):
        while parent.setdefault(key, key) != key:
            key = parent[key]
        return key

    for p in pictures:
        for key in p.keys[1:]:
            x, y = sorted((root(p.keys[0]), root(key)))
            parent[y] = x
    for p in pictures:
        p.concept = root(p.keys[0])


# --- what may stand beside what ---

def clash(p, other):
    """Whether `other`'s name could also be right for `p`, so that it cannot be a false answer."""
    if other.concept == p.concept or other.name.lower() in GENERAL:
        return True
    mine, yours = set(words(p.name)), set(words(other.name))
    if mine <= yours or yours <= mine:
        return True
    said, heard = {normal(t) for t in p.tags}, {normal(t) for t in other.tags}
    return normal(other.name) in said or normal(p.name) in heard or normal(other.name) == normal(p.kind)


def walk(chance, items, *salt):
    """The items from a place on and with a step that the hash decides, each once."""
    if items:
        start, step = chance.number("start", *salt) % len(items), chance.number("step", *salt) % len(items) or 1
        while math.gcd(step, len(items)) > 1:
            step += 1
        for i in range(len(items)):
            yield items[(start + i * step) % len(items)]


class Pool:
    """The pictures of one split, in a mixed order, from which false answers are taken."""

    def __init__(self, chance, pictures):
        self.chance = chance
        self.all = chance.order(pictures, "pool", key=lambda p: p.set + p.id)
        self.kind, self.group = collections.defaultdict(list), collections.defaultdict(list)
        for p in self.all:
            self.kind[p.kind].append(p)
            self.group[p.group].append(p)

    def distractors(self, p, number, near, *salt):
        """`number` names of other concepts, `near` of them of p's kind, then of its group, where there are."""
        chosen, taken = [], {p.concept}
        for items, goal in ((self.kind[p.kind], near), (self.group[p.group], near), (self.all, number)):
            for o in walk(self.chance, items, p.set, p.id, *salt):
                if len(chosen) >= goal:
                    break
                if o.concept not in taken and all(o.name != c.name for c in chosen) and not clash(p, o):
                    taken.add(o.concept)
                    chosen.append(o)
        if len(chosen) < number:
            fail(f"{p.image}: {len(chosen) + 1} of {number + 1} candidates for an answer (at least 2 are always needed): "
                 f"SOURCE has too few pictures, make it again with studies/real/packages/make.sh")
        return [o.name for o in chosen]


# --- texts ---

CAPTIONS = (
    ("Name this.", "{name}"),
    ("What is shown?", "a picture of {a}"),
    ("What is this?", "This is {a}."),
    ("Describe the picture briefly.", "{A} on a white background."),
    ("What can be seen here?", "The picture shows {a}."),
    ("What is it, and of what kind?", "{name} ({kind})"),
    ("Give the kind and the name.", "{kind}: {name}"),
    ("Caption this.", "{A}."),
)
ASK = {
    "name": ("What is it?", "What is this a picture of?", "Name what is shown."),
    "category": ("What kind of thing is it?", "Which category does it belong to?", "What is its category?"),
    "exists": ("Is there {a} in the picture?", "Does the picture show {a}?", "Can {a} be seen here?"),
    "choice": ("Which of these is it: {list}?", "Choose what is shown: {list}.", "Is it {list}?"),
    "tag": ("Which word fits best: {list}?", "Choose the word that fits: {list}.", "Which tag fits: {list}?"),
}
TYPES = tuple(ASK)


def or_list(items):
    return ", ".join(items[:-1]) + " or " + items[-1]


def caption(chance, p, round_):
    first = chance.number("caption", p.set, p.id)
    question, answer = CAPTIONS[(first + 3 * round_) % len(CAPTIONS)]
    with_a = a(p.name)
    return question, answer.format(name=p.name, a=with_a, A=capital(with_a), kind=p.kind)


def record(id_, p, turns):
    talk = []
    for i, (question, answer) in enumerate(turns):
        talk.append({"from": "human", "value": ("<image>\n" if i == 0 else "") + question})
        talk.append({"from": "gpt", "value": answer})
    return {"id": id_, "image": p.image, "conversations": talk}


class Asker:
    """Asks about pictures of one split; all names and tags in its questions are of that split."""

    def __init__(self, chance, pool, vocabulary):
        self.chance, self.pool, self.vocabulary = chance, Pool(chance, pool), vocabulary
        self.yes, self.near = collections.Counter(), collections.Counter()

    def tags(self, p):
        return [t for t in p.tags if t in self.vocabulary and t != p.kind and t not in p.kind.split()]

    def ask(self, type_, p):
        """A question and its answer with the options that it names; None if the picture has no fitting tag."""
        c = self.chance
        text = c.pick(ASK[type_], "ask", type_, p.set, p.id)
        if type_ == "name":
            return text, p.name, None
        if type_ == "category":
            return text, p.kind, None
        if type_ == "exists":
            self.yes[p.set] += 1
            if self.yes[p.set] % 2:
                return text.format(a=a(p.name)), "yes", None
            self.near[p.set] += 1
            near = self.near[p.set] % 2
            return text.format(a=a(self.pool.distractors(p, 1, near, "exists")[0])), "no", None
        if type_ == "choice":
            options = [p.name] + self.pool.distractors(p, 3, 1, "choice")
        else:
            mine = self.tags(p)
            if not mine:
                return None
            tag = c.pick(mine, "tag", p.set, p.id)
            own = {normal(t) for t in p.tags} | set(words(p.name)) | set(words(p.kind))
            options = [tag]
            for o in walk(c, self.pool.all, "tags", p.set, p.id):
                if o.group == p.group or clash(p, o):
                    continue
                free = [t for t in self.tags(o) if normal(t) not in own and not set(words(t)) & own and t not in options
                        and not (tag in o.tags)]
                if free:
                    options.append(c.pick(free, "other tag", p.set, p.id, o.id))
                if len(options) == 4:
                    break
            if len(options) < 4:
                fail(f"{p.image}: only {len(options)} of 4 tags to choose from, at least 2 and all of them are needed: "
                     f"SOURCE has too few pictures or tags, make it again with studies/real/packages/make.sh")
        answer = options[0]
        return text.format(list=or_list(c.order(options, "options", type_, p.set, p.id))), answer, options


# --- orders and samples ---

def rounds(chance, pictures, salt):
    """First one picture of each concept, from the sets in turn, then a second one, .."""
    left = collections.defaultdict(list)
    for p in chance.order(pictures, salt, key=lambda p: p.set + " " + p.id):
        left[p.concept].append(p)
    used, out = collections.Counter(), []
    keys = chance.order(left, salt, "concepts")
    while left:
        for key in [key for key in keys if key in left]:
            sets = {p.set for p in left[key]}
            best = min(sets, key=lambda s: (used[s], SETS.index(s)))
            p = next(p for p in left[key] if p.set == best)
            used[best] += 1
            left[key].remove(p)
            out.append(p)
            if not left[key]:
                del left[key]
    return out


def balanced(chance, pictures, number, salt, fits=lambda p: True):
    """`number` pictures, equally many of each set where there are enough, of different names as far as possible."""
    queues = {}
    names = collections.Counter()
    for s in SETS:
        queues[s] = rounds(chance, [p for p in pictures if p.set == s and fits(p)], salt)
    out = []
    while len(out) < number and any(queues.values()):
        for s in reversed(SETS):
            if queues[s] and len(out) < number:
                i = min(range(len(queues[s])), key=lambda i: (names[queues[s][i].concept], i))
                p = queues[s].pop(i)
                names[p.concept] += 1
                out.append(p)
    if len(out) < number:
        fail(f"only {len(out)} of {number} pictures for {salt}: SOURCE has too few, make it again with studies/real/packages/make.sh")
    return out


# --- the files ---

def make(source, seed):
    chance = Chance(seed)
    pictures, left_out = read(source)
    join_concepts(pictures)
    for p in pictures:
        share = chance.share("split", p.concept)
        p.split = next(name for name, end in SPLITS if share < end)
    by_split = {name: [p for p in pictures if p.split == name] for name, _ in SPLITS}
    for name, found in by_split.items():
        if len({p.concept for p in found}) < 2:
            fail(f"fewer than 2 candidates in the split {name}: {source} has too few pictures, make it again with "
                 f"studies/real/packages/make.sh")
    # Tags that at least three concepts of the train split have
    concepts_of = collections.defaultdict(set)
    for p in by_split["train"]:
        for tag in p.tags:
            concepts_of[tag].add(p.concept)
    vague = set("the and not for you with here know omg lol own stuff thing things done down set off out".split())
    vocabulary = {t for t, found in concepts_of.items() if len(found) >= 3 and " " not in t} - vague
    asked = {}
    files = {}

    train = rounds(chance, by_split["train"], "pretrain")
    files["pretrain.json"] = [record(f"{p.set}-{p.id}-{r}", p, [caption(chance, p, r)]) for r in (0, 1) for p in train]

    asker = Asker(chance, by_split["train"], vocabulary)
    talks = [[], []]
    for p in rounds(chance, by_split["train"], "finetune"):
        last = chance.pick(("name", "choice"), "last", p.set, p.id)
        first = chance.order(("category", "tag"), "first", p.set, p.id)
        turns = [asker.ask(t, p) for t in first + [last]]
        talks[0].append(record(f"{p.set}-{p.id}-0", p, [t[:2] for t in turns if t]))
        exists = asker.ask("exists", p)
        # A "yes" says the name, so that only the category is asked after it
        then = "category" if exists[1] == "yes" else "choice" if last == "name" else "name"
        talks[1].append(record(f"{p.set}-{p.id}-1", p, [exists[:2], asker.ask(then, p)[:2]]))
    files["finetune.json"] = talks[0] + talks[1]

    for split, number in (("validation", 100), ("eval", 200)):
        pool = by_split[split]
        asker = Asker(chance, pool, vocabulary)
        chosen = balanced(chance, pool, number, split, lambda p: bool(asker.tags(p)))
        questions = []
        for p in chosen:
            for type_ in TYPES:
                text, answer, options = asker.ask(type_, p)
                questions.append({"question_id": f"{p.set}-{p.id}-{type_}", "image": p.image, "text": text,
                                  "answer": answer, "category": type_})
                asked[questions[-1]["question_id"]] = (p, options)
        files[f"{split}.jsonl"] = questions
        lists = []
        for p in chosen:
            names = [p.name] + asker.pool.distractors(p, CHOICES - 1, CHOICES // 2, "list")
            id_ = f"{p.set}-{p.id}"
            lists.append({"id": id_, "question_id": id_, "image": p.image, "question": LIST_QUESTION,
                          "text": LIST_QUESTION, "type": "name", "category": "name",
                          "choices": chance.order(names, "list order", p.set, p.id), "answer": p.name})
        files[f"choices_{split}.jsonl"] = lists
        files[f"captions_{split}.json"] = [record(f"{p.set}-{p.id}", p, [caption(chance, p, 0)]) for p in chosen]
        if split == "eval":
            rich = [p for p in chosen if len(set(p.tags) - set(p.name.lower().split())) >= 2]
            lens = balanced(chance, rich, 100, "lens")
            files["lens_eval.json"] = [
                record(f"{p.set}-{p.id}", p, [(LENS_QUESTION, " ".join([p.name] + [
                    t for t in p.tags if t not in p.name.lower().split()][:12]))]) for p in lens]
    check(source, pictures, files, asked)
    return pictures, by_split, left_out, files


def check(source, pictures, files, asked):
    """Raises if a promise of README.md does not hold."""
    split_of, name_split = {}, {}
    for p in pictures:
        if split_of.setdefault(p.concept, p.split) != p.split:
            raise AssertionError(f"the concept {p.concept} stands in two splits")
        for key in [("code", code_key(p.id))] if p.set in EMOJI else []:
            if split_of.setdefault(key, p.split) != p.split:
                raise AssertionError(f"the code point {key} stands in two splits")
        if name_split.setdefault(normal(p.name), p.split) != p.split:
            raise AssertionError(f"the name {p.name} stands in two splits")
    at = {p.image: p for p in pictures}
    where = {"pretrain": "train", "finetune": "train"}
    for file, entries in files.items():
        stem = file.split(".")[0]
        split = where.get(stem, "validation" if "validation" in stem else "eval")
        ids = [e.get("id", e.get("question_id")) for e in entries]
        if len(set(ids)) != len(ids):
            raise AssertionError(f"{file}: an id occurs twice")
        for e in entries:
            p = at[e["image"]]
            if p.split != split:
                raise AssertionError(f"{file}: {e['image']} is of the split {p.split}")
            if not os.path.isfile(os.path.join(source, "data", e["image"])):
                raise AssertionError(f"{file}: {e['image']} does not exist")
            for turn in e.get("conversations", []):
                if len(turn["value"].split()) > 40:
                    raise AssertionError(f"{file}: long text: {turn['value']}")
            if stem.startswith(("pretrain", "captions")) and len(e["conversations"][1]["value"].split()) > 13:
                raise AssertionError(f"{file}: long caption: {e['conversations'][1]['value']}")
    for file in ("validation.jsonl", "eval.jsonl"):
        answers = collections.Counter()
        for q in files[file]:
            p, options = asked[q["question_id"]]
            found = len(re.findall(rf"(?<![\w-]){re.escape(q['answer'])}(?![\w-])", q["text"], re.I))
            if options is None and q["category"] != "exists" and found:
                raise AssertionError(f"{file}: a question holds its answer: {q['text']}")
            if options is not None:
                if len(set(options)) != 4 or options[0] != q["answer"] or any(o not in q["text"] for o in options):
                    raise AssertionError(f"{file}: wrong options: {q['text']}")
                if q["category"] == "tag" and sum(o in p.tags for o in options) != 1:
                    raise AssertionError(f"{file}: two tags are right: {q['text']}")
            if q["category"] == "exists":
                answers[q["answer"]] += 1
        if abs(answers["yes"] - answers["no"]) > len(SETS):
            raise AssertionError(f"{file}: {answers} are not balanced")
    names = {s: {p.name for p in pictures if p.split == s} for s, _ in SPLITS}
    for split in ("validation", "eval"):
        for e in files[f"choices_{split}.jsonl"]:
            if len(set(e["choices"])) != CHOICES or e["choices"].count(e["answer"]) != 1:
                raise AssertionError(f"choices_{split}.jsonl: {e['id']} has not {CHOICES} different names")
            if not set(e["choices"]) <= names[split]:
                raise AssertionError(f"choices_{split}.jsonl: {e['id']} has names of another split")


def dump(entries, lines):
    if lines:
        return "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in entries)
    return "[\n" + ",\n".join(json.dumps(e, ensure_ascii=False) for e in entries) + "\n]\n"


def main():
    parser = argparse.ArgumentParser(description="Makes the data of the study on real backbones.")
    parser.add_argument("source", help="the folder that studies/real/packages/make.sh made")
    parser.add_argument("out", help="the folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pictures, by_split, left_out, files = make(args.source, args.seed)
    facts = {"seed": args.seed, "images": "data", "images_note": "image paths are relative to SOURCE/data",
             "licenses": LICENSES, "concepts": {}, "pictures": {}, "left_out": {}, "files": {}}
    for split, found in by_split.items():
        facts["concepts"][split] = len({p.concept for p in found})
        facts["pictures"][split] = {s: sum(p.set == s for p in found) for s in SETS}
    for (s, reason), number in sorted(left_out.items()):
        facts["left_out"].setdefault(s, {})[reason] = number
    try:
        os.makedirs(args.out, exist_ok=True)
        for name, entries in files.items():
            data = dump(entries, name.endswith(".jsonl")).encode()
            with open(os.path.join(args.out, name), "wb") as file:
                file.write(data)
            sets = collections.Counter(e["image"].split("/")[0] for e in entries)
            fact = {"entries": len(entries), "by_set": {s: sets[s] for s in SETS},
                    "sha256": hashlib.sha256(data).hexdigest()}
            if name in ("validation.jsonl", "eval.jsonl"):
                fact["by_type"] = dict(sorted(collections.Counter(e["category"] for e in entries).items()))
            facts["files"][name] = fact
        with open(os.path.join(args.out, "facts.json"), "w", encoding="utf-8") as file:
            file.write(json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        fail(f"{args.out} cannot be written ({error.strerror}): give a folder that can be written to")
    print(f"{'split':<12}{'concepts':>9}" + "".join(f"{s:>10}" for s in SETS))
    for split in by_split:
        print(f"{split:<12}{facts['concepts'][split]:>9}" + "".join(f"{facts['pictures'][split][s]:>10}" for s in SETS))
    print(f"\n{'file':<26}{'entries':>8}" + "".join(f"{s:>10}" for s in SETS))
    for name, fact in facts["files"].items():
        print(f"{name:<26}{fact['entries']:>8}" + "".join(f"{fact['by_set'][s]:>10}" for s in SETS))
    print(f"\nimages: {os.path.join(args.source, 'data')}")


if __name__ == "__main__":
    main()
