"""The console: a page to upload tracks, continue playlists and look at audiences. No build step, no library."""

from pathlib import Path

TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

FILES = {
    path.name: (path.read_bytes(), TYPES[path.suffix])
    for path in sorted(Path(__file__).parent.iterdir())
    if path.suffix in TYPES
}
"""Name -> content and media type. They are few and small, and hold nothing that is anybody's: no key is needed."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
)
"""The page's Content-Security-Policy: its own files, its own service, and no text that becomes markup."""
