"""List the names and words that the generated calibration tasks are made of."""
# ruff: noqa: SIM905

CITIES = (
    "Amsterdam Athens Bangkok Berlin Bogota Boston Brisbane Cairo Calgary Chicago Dakar Delhi Denver Dublin Geneva "
    "Hanoi Havana Helsinki Istanbul Jakarta Kyoto Lagos Lima Lisbon London Madrid Manila Miami Milan Montreal Moscow "
    "Mumbai Munich Nairobi Naples Osaka Oslo Paris Prague Quito Riga Rome Seattle Seoul Sydney Tokyo Toronto Vienna"
).split()
NAMES = (
    "Adam Alice Anna Arthur Bella Boris Carla Cedric Clara Daniel Diana Edgar Elena Emma Felix Fiona George Grace "
    "Hanna Henry Ida Igor Irene Jack Jane Karl Laura Leo Linda Lucas Maria Martin Nina Nora Oscar Paul Petra "
    "Quentin Rita Robert Sara Simon Tara Thomas Ursula Victor Wanda Yusuf Zoe"
).split()
COLOURS = ("amber black blue brown crimson golden green grey orange pink purple red silver teal violet white").split()
ADJECTIVES = (
    "ancient brave calm clever cold curious dark eager early fast gentle happy heavy hidden hollow keen late light "
    "lonely loud mellow narrow noble pale plain proud quick quiet rapid rough round sharp silent simple slow soft "
    "steady strong sweet tall tiny torn vast warm wide wild wise young"
).split()
NOUNS = (
    "anchor apple arrow badge barrel basket bell bridge brush bucket button cable candle canyon castle chair cloud "
    "copper desert engine falcon feather forest fountain garden glacier hammer harbor island jacket kettle ladder "
    "lantern marble meadow mirror needle ocean orchard paper pencil pillow planet pocket ribbon river rocket saddle "
    "shadow signal statue temple thunder tunnel valley village violin wagon window"
).split()
