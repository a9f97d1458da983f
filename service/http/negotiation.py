"""Which form of an answer a client prefers."""


def prefers(accept: str, media: str) -> bool:
    """Whether an Accept header (RFC 9110, 12.5.1) ranks `media` above JSON; JSON where it ranks them equal."""
    ranks: dict[str, float] = {}
    for part in accept.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        given = next((value for value in parameters if value.startswith("q=")), "q=1")
        try:
            ranks[name] = float(given.removeprefix("q="))
        except ValueError:
            ranks[name] = 0.0

    def rank(kind: str) -> float:
        return next((ranks[n] for n in (kind, f"{kind.partition('/')[0]}/*", "*/*") if n in ranks), 0.0)

    wanted, other = rank(media), rank("application/json")
    named = media in ranks and "application/json" not in ranks  # "text/csv, */*" names what it wants
    return wanted > other or (named and wanted == other > 0)
