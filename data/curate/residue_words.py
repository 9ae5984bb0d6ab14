"""What `residue` looks for: recorders, microphones and programs, and capitalised words that are no names."""

# A name alone is residue: nothing that sounds is called so.
MAKERS = (
    "AKG",
    "Ableton",
    "Adobe Audition",
    "Audacity",
    "Audio[- ]Technica",
    "Behringer",
    "Blue Yeti",
    "Br[uü]el (?:&|and) Kj[aæ]r",
    "Cubase",
    "Edirol",
    "FL Studio",
    "Focusrite",
    "Fostex",
    "GarageBand",
    "GoPro",
    "iPhone",
    "iPad",
    "Izotope",
    "Logic Pro",
    "M-Audio",
    "Marantz",
    "MixPre",
    "Nagra",
    "Neumann",
    "Oktava",
    "Olympus",
    "Pro Tools",
    "Røde",
    "Schoeps",
    "Sennheiser",
    "Shure",
    "Sound Devices",
    "Sound Forge",
    "Tascam",
    "Telinga",
    "WavePad",
    "Zoom (?:recorder|mic|handy)",
)

# A model, of makers whose names are words or stand on instruments too.
MODELS = (
    r"Zoom[ -]?[FHRQ][ -]?\d\w*",  # Zoom H4n, Zoom F8
    r"H[1-68](?:n|e|essential|n ?pro)\b",  # H4n, H2n
    r"Sony (?:PCM|MZ|ECM|TCM|ICD)\b[- ]?\w*",  # Sony PCM-D50
    r"PCM[- ]?[DM]\d+",
    r"ECM[- ]?\d+\w*",
    r"DR[- ]?(?:0?[57]|[14]0|100|680)\w*",  # Tascam DR-40
    r"(?:Roland )?R[- ]?0[59]\w*",  # Roland R-05
    r"LS[- ]?(?:5|1[0-4])\b",  # Olympus LS-10
    r"NT[- ]?[1-5]\w?\b",  # Røde NT1-A
    r"(?-i:Rode|RODE)(?= (?:NT|M|V|mic))",  # Rode M3; a horse that somebody rode is none
    r"(?:VideoMic|NTG)[- ]?\w*",
    r"MKH[- ]?\d+\w*",
    r"(?:U|TLM|KM)[- ]?(?:47|67|87|103|18[345])\w*",  # Neumann U87, KM184
    r"SM[- ]?(?:57|58|7B)",
    r"C[- ]?(?:414|451|1000s?)\b",  # AKG C414
    r"DPA[- ]?\d+",
    r"Samsung \w+|Nokia \w+|Galaxy S\d+",
)

# Extensions of files that people name in descriptions.
EXTENSIONS = "wav wave mp3 aif aiff flac ogg oga opus m4a wma aac mid midi zip rar mp4 mov avi wmv pdf txt jpe?g png"

# Without those that are words: it, me, no.
TOP_LEVEL_DOMAINS = "com org net edu gov info io co uk de fr es nl ru eu tv ca au br se ch pl fm"

# Capitalised, and no name of somebody or some place: sounds, kinds of music, instruments, holidays, units.
_NOT_NAMES = """
Hz kHz dB I I'm I've I'd I'll God Christmas Halloween Easter New Year Year's Santa Internet
Morse Doppler Geiger Foley Hammond Rhodes Wurlitzer Moog Mellotron Leslie Theremin Jew's Gregorian Baroque
English French German Spanish Italian Russian Chinese Japanese Arabic Portuguese Dutch Polish Turkish Korean Hindi
Indian African Latin Celtic Irish Scottish Balkan American British European Asian Brazilian Cuban Mexican Tibetan
Aboriginal Velcro Styrofoam Jacuzzi Ping-Pong Frisbee Harley Ferris Jeep Diesel Vespa Boeing Cessna
"""
NOT_NAMES = frozenset(_NOT_NAMES.split())
